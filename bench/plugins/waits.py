"""Waits as many seconds as its `model.pth` says, then copies the volume and writes an empty mask.

The plugin makes such a copy too; it is what is large in a job's output.
"""

import runpy
import shutil
import sys
import time
from pathlib import Path

inputs, outputs = map(Path, sys.argv[-2:])
seconds = float((inputs / "model.pth").read_text())
print("waits", seconds, flush=True)
time.sleep(seconds)
runpy.run_path(str(Path(__file__).parents[2] / "tests" / "plugins" / "empty.py"))
shutil.copyfile(inputs / "imagesTs" / "input.nii.gz", outputs / "inference" / "orig.nii.gz")
