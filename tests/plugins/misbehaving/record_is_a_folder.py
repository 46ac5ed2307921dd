"""Puts in the place of the job's record a folder with something in it."""

from places import RECORD, segment_without

segment_without(RECORD)
(RECORD / "inner").mkdir(parents=True)
