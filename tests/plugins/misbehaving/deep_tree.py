"""Makes 2,000 folders, one in the other."""

import os
from pathlib import Path

from common import segment
from places import OUTPUT

segment()
os.chdir(OUTPUT)
for _ in range(2000):
    Path("deeper").mkdir()
    os.chdir("deeper")
