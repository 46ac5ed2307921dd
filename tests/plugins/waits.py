"""Like `ok.py`, but says so first, and then waits: for so many seconds as the weights file says."""

import time
from pathlib import Path

from common import segment

print("waiting", flush=True)
said = Path("input/model.pth").read_text()
time.sleep(1.5 if said == "weights" else float(said))
segment()
