"""Does its work, and changes the weights that it was given, as the model's content says."""

import os
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))
from common import segment

weights = Path("input/model.pth")
how = weights.read_bytes()
segment()
weights.chmod(0o660)
if how == b"writes":
    with weights.open("r+b") as file:
        file.write(b"changed")
elif how == b"hides":
    before = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"badly")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
elif how == b"removes":
    weights.unlink()
elif how == b"replaces":
    weights.unlink()
    weights.mkdir()
elif how == b"touches":
    weights.touch()
