"""Like `ok.py`, but leaves things that are hard to remove in its output and beside it."""

import os
import socket
from pathlib import Path

from common import segment

LONGEST = "n" * 255

segment()
here = Path.cwd()
for place, depth in ((here / "output", 1500), (here, 50)):
    os.chdir(place)
    Path("link-to-a-folder").symlink_to("/etc")
    Path("link-to-a-file").symlink_to(here / "input" / "model.pth")
    Path("link-to-nothing").symlink_to("nothing")
    os.mkfifo("fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("socket")
    listening.close()
    for mode in (0o000, 0o300, 0o500):
        folder = Path(f"mode-{mode:o}")
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "file").write_text("voxels")
        (folder / "inner").chmod(mode)
        folder.chmod(mode)
    for _ in range(depth):
        Path(LONGEST).mkdir()
        os.chdir(LONGEST)
        Path("file").write_text("voxels")
