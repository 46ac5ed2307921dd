"""A run in one file: enough to understand it, and with its voxels enough to run it elsewhere."""

import zipfile
from pathlib import Path

from pfms.errors import DiskFull
from pfms.storage.files import discard
from pfms.storage.workspace import JobTree


def write_bundle(tree: JobTree, target: Path, *, voxels: bool, room: int) -> None:
    """Zip a job's folder: command, record and log; with `voxels` also input, result and weights.

    What lies in it is as in the folder, under one folder of the job's name, so that unpacked it is
    a job that `command.sh` and `pfms replay` run. Files that are compressed already are stored.

    Raises:
        DiskFull: The voxels have more than `room` bytes.
    """
    files = [tree.command, tree.record, tree.log]
    if voxels:
        copied = [tree.volume, tree.model, tree.segmentation]
        if sum(file.stat().st_size for file in copied if file.is_file()) > room:
            raise DiskFull("There is no room for a copy of this job's voxels on the server's disk.")
        files += copied
    try:
        with zipfile.ZipFile(target, "w") as bundle:
            for file in files:
                if file.is_file():
                    packed = file.suffix in (".gz", ".pth")
                    method = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
                    bundle.write(file, f"{tree.root.name}/{file.relative_to(tree.root)}", method)
    except BaseException:
        discard(target)
        raise
