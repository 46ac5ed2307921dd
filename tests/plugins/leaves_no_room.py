"""Like `ok.py`, but once it has succeeded there is no room for anything else."""

import contextlib

from common import arguments, segment

segment()
with (
    (arguments().outputdir / "more").open("wb", buffering=0) as file,
    contextlib.suppress(OSError),
):
    while True:
        file.write(bytes(4096))
