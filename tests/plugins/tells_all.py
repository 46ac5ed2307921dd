"""Prints all that it was given, and works."""

import os
import sys

from common import segment

print(sys.argv, dict(os.environ))
segment()
