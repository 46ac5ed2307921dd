"""Runs on a Ray cluster: Ray's driver, a program of its own, and what it puts on the nodes.

The server starts it as `python -m pfms.cluster FD` (`executors/cluster.py`) and never imports Ray.
"""
