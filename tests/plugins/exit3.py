"""Says something and ends with code 3."""

import sys

print("no spleen today", file=sys.stderr)
sys.exit(3)
