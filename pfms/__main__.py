"""`python -m pfms`."""

from pfms.cli import main

main()
