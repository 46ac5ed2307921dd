"""Leaves links to what is not its own beside its result."""

from common import segment
from places import OUTPUT, OUTSIDE, SECRET

segment()
(OUTPUT / "inference" / "orig.nii.gz").unlink()
(OUTPUT / "inference" / "orig.nii.gz").symlink_to(SECRET)
(OUTPUT / "folder").symlink_to(OUTSIDE)
(OUTPUT / "root").symlink_to("/")
