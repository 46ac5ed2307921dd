"""Writes files so that they appear whole and durably, and checks them."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path

from pfms.storage.inside import NO_LINK, writing

# --- durability ------------------------------------------------------------------------------


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(root: Path) -> None:
    """Make a folder durable, with everything in it, but not its own name.

    Only for a tree that pfms itself made: it is not deep, and has only files and folders.
    """
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            _sync(Path(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        _sync(Path(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def make_folder(folder: Path) -> None:
    """Make a folder durably, with any missing parents; an existing one is left as it is."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


@contextmanager
def writing_atomically(target: Path) -> Iterator[BufferedWriter]:
    """Give a new file to write to; without an error, it is renamed to `target` at the end.

    Its content and name are durable then. Neither it nor its folder is reached by a link.
    """
    with writing(target.parent, target.name) as part:
        yield part


def write_atomically(path: Path, content: bytes, mode: int = 0o660) -> None:
    """Write `content` so that it appears whole and durably."""
    with writing_atomically(path) as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)


def link_or_copy(file: Path, target: Path) -> None:
    """Make `target` a hard link to `file`, or a copy if the file system refuses to link."""
    try:
        target.hardlink_to(file)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        shutil.copyfile(file, target)


# --- content ---------------------------------------------------------------------------------


def size_and_sha256(file: BufferedReader) -> tuple[int, str]:
    """The size in bytes and SHA-256 of an open file, whose position is then at the end."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return file.tell(), digest


def matches(file: BufferedReader, size: int, sha256: str) -> bool:
    """Whether an open file still has the recorded content; its position is then at the start.

    This reads the whole file, unless its size is wrong, so call it in a thread.
    """
    if os.fstat(file.fileno()).st_size != size:
        return False
    found = size_and_sha256(file)
    file.seek(0)
    return found == (size, sha256)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tail_of(file: BufferedReader, size: int = 64 << 10) -> str:
    """The last `size` bytes of a text file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - size))
    return file.read(size).decode(errors="replace")
