"""A run in one file: enough to understand it and, with its voxels, to run it elsewhere."""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from pfms.storage.workspace import JobTree


def files_of(tree: JobTree, *, voxels: bool) -> tuple[Path, ...]:
    """Command, record and log of a job; with `voxels` also input, weights and result."""
    explains = (tree.command, tree.record, tree.log)
    return (*explains, tree.volume, tree.model, tree.segmentation) if voxels else explains


def size_of(files: Iterable[Path]) -> int:
    """The total size, in bytes, of the files that exist."""
    return sum(file.stat().st_size for file in files if file.is_file())


def write_bundle(folder: Path, files: Sequence[Path], target: Path) -> None:
    """Zip those of a job's files that exist.

    Their paths in the zip are those in the job's folder, below one folder with the job's name: when
    unpacked, `command.sh` and `pfms replay` can run it. Compressed files are stored as they are.
    """
    with zipfile.ZipFile(target, "w") as bundle:
        for file in files:
            if file.is_file():
                packed = file.suffix in (".gz", ".pth")
                method = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
                bundle.write(file, f"{folder.name}/{file.relative_to(folder)}", method)
