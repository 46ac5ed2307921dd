"""A run in one file: enough to understand it and, with its voxels, to run it elsewhere."""

import os
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pfms.storage.workspace import JobTree


def files_of(tree: JobTree, *, voxels: bool) -> tuple[Path, ...]:
    """Command, record and log of a job; with `voxels` also input, weights and result."""
    explains = (tree.command, tree.record, tree.log)
    return (*explains, tree.volume, tree.model, tree.segmentation) if voxels else explains


def size_of(tree: JobTree, files: Iterable[Path]) -> int:
    """The total size, in bytes, of those of a job's files that exist."""
    total = 0
    for file in files:
        with suppress(FileNotFoundError), tree.open(file) as opened:
            total += os.fstat(opened.fileno()).st_size
    return total


def write_bundle(tree: JobTree, files: Sequence[Path], target: Path) -> None:
    """Zip those of a job's files that exist; what is no file (a link, a FIFO) is left out.

    Their paths in the zip are those in the job's folder, below one folder with the job's name: when
    unpacked, `command.sh` and `pfms replay` can run it. Compressed files are stored as they are.
    """
    with zipfile.ZipFile(target, "w") as bundle:
        for file in files:
            with suppress(FileNotFoundError), tree.open(file) as opened:
                packed = file.suffix in (".gz", ".pth")
                method = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
                name = f"{tree.root.name}/{file.relative_to(tree.root)}"
                bundle.write(f"/dev/fd/{opened.fileno()}", name, method)
