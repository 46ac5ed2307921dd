"""Its result is a link to a file outside."""

from places import RESULT, SECRET, segment_without

segment_without(RESULT)
RESULT.symlink_to(SECRET)
