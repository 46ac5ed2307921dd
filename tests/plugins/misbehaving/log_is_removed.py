"""Removes its log."""

from places import LOG, segment_without

segment_without(LOG)
