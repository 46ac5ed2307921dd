"""Its result is a device that can be read without end."""

import os
import stat

from places import RESULT, segment_without

segment_without(RESULT)
os.mknod(RESULT, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
