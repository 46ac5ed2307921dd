"""A run in one file: enough to understand it, and with its voxels enough to run it elsewhere."""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from pfms.storage.workspace import JobTree


def files_of(tree: JobTree, *, voxels: bool) -> tuple[Path, ...]:
    """Command, record and log of a job; with `voxels` also input, weights and result."""
    explains = (tree.command, tree.record, tree.log)
    return (*explains, tree.volume, tree.model, tree.segmentation) if voxels else explains


def size_of(files: Iterable[Path]) -> int:
    """The bytes of those that are there."""
    return sum(file.stat().st_size for file in files if file.is_file())


def write_bundle(folder: Path, files: Sequence[Path], target: Path) -> None:
    """Zip those files of a job's folder that are there.

    They lie in the zip as in the folder, under one folder of the job's name, so that unpacked it is
    a job that `command.sh` and `pfms replay` run. Files that are compressed already are stored.
    """
    with zipfile.ZipFile(target, "w") as bundle:
        for file in files:
            if file.is_file():
                packed = file.suffix in (".gz", ".pth")
                method = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
                bundle.write(file, f"{folder.name}/{file.relative_to(folder)}", method)
