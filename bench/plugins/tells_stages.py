"""A run of about fifteen seconds that prints its stages as the plugin does; an empty mask."""

import runpy
import time
from pathlib import Path

time.sleep(5)
print("\rLoading dataset: 100%|##########| 1/1", flush=True)
time.sleep(5)
print("[1]--------> novel inference", flush=True)
time.sleep(5)
runpy.run_path(str(Path(__file__).parents[2] / "tests" / "plugins" / "empty.py"))
