"""Gives each run weights of its own: a write into them changes nobody else's.

A job's weights are a link to those in the store, so that they take no room. The plugin gets a copy,
which is thrown away after the run. Copying takes about as long as reading them to compare their
checksum, which each start does anyway; the copy need not be durable.
"""

import logging
import os
import shutil
from io import BufferedReader
from pathlib import PurePath

from pfms.storage.files import size_and_sha256
from pfms.storage.inside import opened_folder, opened_folders
from pfms.storage.removal import discard
from pfms.storage.workspace import JobTree

logger = logging.getLogger(__name__)

_ASIDE = ".weights"  # in the job's folder: the weights that it was accepted with
_READ_ONLY = 0o440
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class OwnWeights:
    """The weights of one run. Blocking."""

    def __init__(self, tree: JobTree, sha256: str) -> None:
        """Put a copy in the place of weights that are linked from elsewhere.

        Args:
            tree: The job's folder.
            sha256: Of its weights.

        Raises:
            OSError: There is no room for it; the weights are as they were.
        """
        self._tree = tree
        self._sha256 = sha256
        with tree.open(tree.model) as file:
            self._copied = os.fstat(file.fileno()).st_nlink > 1
            if self._copied:
                _copy_aside(tree, file)
        with tree.open(tree.model) as file:
            self._stamp = _stamp(file)

    def put_right(self) -> list[str]:
        """After the run, put the weights back that it had instead; what it did to its own."""
        try:
            with self._tree.open(self._tree.model) as file:
                changed = _stamp(file) != self._stamp and size_and_sha256(file)[1] != self._sha256
        except FileNotFoundError:
            changed = True
        if self._copied:
            try:
                put_back(self._tree)
            except OSError as error:  # something else is in the place of the input folder
                logger.warning(
                    "job %s: its weights cannot be put back: %s", self._tree.root.name, error
                )
        return ["changed or removed its weights"] if changed else []


def put_back(tree: JobTree) -> None:
    """Put a job's weights back that are still aside after a run, or after a crash during a run.

    Raises:
        OSError: The input folder is gone, or something else is in its place.
    """
    with opened_folder(tree.root) as root:
        if _ASIDE not in os.listdir(root):  # noqa: PTH208 - it is a descriptor
            return
    with opened_folders(tree.root, PurePath(tree.model.parent.name)) as (root, folder):
        discard(tree.model.name, folder)
        os.rename(_ASIDE, tree.model.name, src_dir_fd=root, dst_dir_fd=folder)


def _copy_aside(tree: JobTree, shared: BufferedReader) -> None:
    name = tree.model.name
    with opened_folders(tree.root, PurePath(tree.model.parent.name)) as (root, folder):
        os.rename(name, _ASIDE, src_dir_fd=folder, dst_dir_fd=root)
        try:
            with os.fdopen(os.open(name, _NEW, _READ_ONLY, dir_fd=folder), "wb") as copy:
                shutil.copyfileobj(shared, copy, 1 << 20)
        except BaseException:
            os.rename(_ASIDE, name, src_dir_fd=root, dst_dir_fd=folder)
            raise


def _stamp(file: BufferedReader) -> tuple[int, ...]:
    """What changes when a file is replaced or written to."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
