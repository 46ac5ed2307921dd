"""How files appear whole and durably, and how they go."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

# another file system; a file of another owner (protected_hardlinks); too many; not supported
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, content: bytes, mode: int = 0o660) -> None:
    """Write `content` beside `path`, make it durable, then rename it into place.

    One writer at a time. What a crash leaves of one, the next overwrites.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def link_or_copy(file: Path, target: Path) -> None:
    """Make `target` the same file as `file`, or a copy where the file system refuses to link."""
    try:
        target.hardlink_to(file)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(file, target)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def appearing_whole(target: Path) -> Iterator[Path]:
    """Give a path to write to; the file takes the name `target` at the end, if all went well."""
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(file: BufferedReader, size: int, sha256: str) -> bool:
    """Whether an opened file has this size, in bytes, and this checksum. It is rewound."""
    if os.fstat(file.fileno()).st_size != size:
        return False
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return found == sha256


def tail_of(path: Path, size: int = 64 << 10) -> str:
    """The last `size` bytes of a text file; empty where there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
