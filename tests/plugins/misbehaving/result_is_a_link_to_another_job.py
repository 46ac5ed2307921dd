"""Its result is a link to the result of another job."""

from places import OTHER_JOB, RESULT, segment_without

segment_without(RESULT)
RESULT.symlink_to(OTHER_JOB / RESULT)
