"""Puts in the place of its log the same file as one outside."""

from places import LOG, SECRET, segment_without

segment_without(LOG)
LOG.hardlink_to(SECRET)
