"""Like `ok.py`, but prints each stage of the plugin and waits for a file before the next."""

import time
from pathlib import Path

from common import segment


def say(line, until):
    print(line, flush=True)
    while not Path(until).exists():
        time.sleep(0.01)


say("Device = cpu", until="infer")
say("\rLoading dataset:   0%|\rLoading dataset: 100%|##########| 1/1", until="save")
say("[1]--------> novel inference", until="end")
print("INFO image_writer.py:197 - writing: output/inference/input/input_seg.nii.gz", flush=True)
segment()
