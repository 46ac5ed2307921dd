"""Fails if another run of it goes on beside it, after a moment in which one would begin."""

import time
from pathlib import Path

from common import segment

mark = Path("..", "running").resolve()
mark.mkdir()
time.sleep(0.5)
segment()
mark.rmdir()
