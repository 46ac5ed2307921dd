"""Makes links with the names that unfinished files of pfms once had."""

from pathlib import Path

from common import segment
from places import SECRET

segment()
Path("result").mkdir()
for part in (".job.json.part", ".command.sh.part", "result/.segmentation.nii.gz.part"):
    Path(part).symlink_to(SECRET)
