"""Its result is a FIFO."""

import os

from places import RESULT, segment_without

segment_without(RESULT)
os.mkfifo(RESULT)
