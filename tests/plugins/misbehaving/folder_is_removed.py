"""Removes its own folder."""

import shutil

from common import segment
from places import JOB

segment()
shutil.rmtree(JOB)
