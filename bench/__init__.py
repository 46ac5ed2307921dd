"""Measures what pfms promises: `python -m bench [NAMES] [--quick]`, or `make bench`."""
