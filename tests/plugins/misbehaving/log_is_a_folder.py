"""Puts in the place of its log a folder."""

from places import LOG, segment_without

segment_without(LOG)
LOG.mkdir()
(LOG / "inner").mkdir()
