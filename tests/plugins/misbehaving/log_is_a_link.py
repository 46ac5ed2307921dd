"""Puts in the place of its log a link to a file of the system."""

from places import LOG, segment_without

segment_without(LOG)
LOG.symlink_to("/etc/passwd")
