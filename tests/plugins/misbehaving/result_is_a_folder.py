"""Its result is a folder."""

from places import RESULT, segment_without

segment_without(RESULT)
RESULT.mkdir()
