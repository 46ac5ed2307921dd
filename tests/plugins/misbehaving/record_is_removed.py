"""Removes the job's record."""

from places import RECORD, segment_without

segment_without(RECORD)
