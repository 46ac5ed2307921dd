"""Does what the weights say, except that the first run in a workspace never ends by itself."""

import runpy
import time
from pathlib import Path

try:
    (Path.cwd().parents[1] / "held").mkdir()
except FileExistsError:
    runpy.run_path(str(Path(__file__).with_name("as_the_model_says.py")), run_name="__main__")
else:
    print("hanging", flush=True)
    while True:
        time.sleep(60)
