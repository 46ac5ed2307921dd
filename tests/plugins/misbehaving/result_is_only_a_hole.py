"""Its result is a terabyte of nothing."""

import os

from common import segment
from places import RESULT

segment()
os.truncate(RESULT, 0)
os.truncate(RESULT, 1 << 40)
