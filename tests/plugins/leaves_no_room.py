"""Like `ok.py`, but when it has succeeded, the disk is full."""

import contextlib

from common import arguments, segment

segment()
with (
    (arguments().outputdir / "more").open("wb", buffering=0) as file,
    contextlib.suppress(OSError),
):
    while True:
        file.write(bytes(4096))
