"""Puts a link to a file outside in the place of the script that repeats its job."""

from places import COMMAND, SECRET, segment_without

segment_without(COMMAND)
COMMAND.symlink_to(SECRET)
