"""Puts in the place of the job's record a FIFO."""

import os

from places import RECORD, segment_without

segment_without(RECORD)
os.mkfifo(RECORD)
