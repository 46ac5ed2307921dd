"""Puts in the place of the job's record a link to a file outside."""

from places import RECORD, SECRET, segment_without

segment_without(RECORD)
RECORD.symlink_to(SECRET)
