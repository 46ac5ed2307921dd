"""Moves its whole folder away and leaves a link to a folder outside."""

from common import segment
from places import JOB, OUTSIDE

segment()
JOB.rename(JOB.parents[1] / "moved")
JOB.symlink_to(OUTSIDE)
