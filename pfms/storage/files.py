"""Writes files so that they appear whole and durably, and checks them."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

# another file system; a file of another owner (protected_hardlinks); too many links; not supported
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}


# --- durability ------------------------------------------------------------------------------


def sync_file(file: Path) -> None:
    """Make the content of `file` durable; its name is durable once its folder is synced."""
    _sync(file, os.O_RDONLY)


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
            sync_file(Path(folder, name))
        sync_folder(Path(folder))


def sync_within(root: Path, files: Iterable[Path]) -> None:
    """Make `files` and their names durable: syncs every folder from theirs up to `root`."""
    folders = set()
    for file in files:
        sync_file(file)
        folders |= {each for each in file.parents if each.is_relative_to(root)}
    for folder in sorted(folders, reverse=True):  # the innermost first
        sync_folder(folder)


def make_folder(folder: Path) -> None:
    """Make a folder durably, with any missing parents; an existing one is left as it is."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


@contextmanager
def writing_atomically(target: Path) -> Iterator[Path]:
    """Give a path to write to; without an error, the file is renamed to `target` at the end.

    Its content and name are durable then. Only one writer at a time: the temporary name is fixed,
    so that the next writer overwrites what a crash left.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        sync_file(part)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_atomically(path: Path, content: bytes, mode: int = 0o660) -> None:
    """Write `content` so that it appears whole and durably."""
    with writing_atomically(path) as part, part.open("wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)


def link_or_copy(file: Path, target: Path) -> None:
    """Make `target` a hard link to `file`, or a copy if the file system refuses to link."""
    try:
        target.hardlink_to(file)
    except OSError as error:
        if error.errno not in _NO_LINK:
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


def tail_of(path: Path, size: int = 64 << 10) -> str:
    """The last `size` bytes of a text file; empty if there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
