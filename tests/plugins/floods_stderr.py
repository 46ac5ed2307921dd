"""Writes 16 MiB to stderr, far more than a pipe holds, then does its work."""

import sys

from common import segment

for _ in range(256):
    sys.stderr.write("flood " * 10923)
segment()
