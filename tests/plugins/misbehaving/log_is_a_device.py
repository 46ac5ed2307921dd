"""Puts in the place of its log a device that can be read without end."""

import os
import stat

from places import LOG, segment_without

segment_without(LOG)
os.mknod(LOG, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
