"""Writes a prepared output: the file that its `model.pth` names. Prints how long it took."""
# ruff: noqa: PTH103, PTH118, PTH123

import time

started = time.perf_counter()

import os  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402

with open(os.path.join(sys.argv[-2], "model.pth")) as file:
    prepared = file.read()
folder = os.path.join(sys.argv[-1], "inference", "input")
os.makedirs(folder)
shutil.copyfile(prepared, os.path.join(folder, "input_seg.nii.gz"))
print("main", time.perf_counter() - started)
