"""Prints something and exits with code 3."""

import sys

print("no spleen today", file=sys.stderr)
sys.exit(3)
