"""Moves its input folder to another place and leaves a link to it."""

import shutil
from pathlib import Path

from common import segment
from places import JOB

segment()
shutil.move("input", "moved")
Path("input").symlink_to(JOB / "moved")
