"""Its result is followed by a terabyte of nothing."""

import os

from common import segment
from places import RESULT

segment()
os.truncate(RESULT, 1 << 40)
