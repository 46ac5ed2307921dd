"""Its result is the same file as another job's result."""

from places import OTHER_JOB, RESULT, segment_without

segment_without(RESULT)
RESULT.hardlink_to(OTHER_JOB / RESULT)
