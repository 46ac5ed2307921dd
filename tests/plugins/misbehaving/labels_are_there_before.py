"""Makes the labels itself: a link, so that pfms would write them outside."""

from pathlib import Path

from common import segment
from places import SECRET

segment()
Path("result").mkdir()
Path("result/segmentation.nii.gz").symlink_to(SECRET)
