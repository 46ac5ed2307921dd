"""How files appear whole and durably, how they are checked, and how they go."""

import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

# another file system; a file of another owner (protected_hardlinks); too many; not supported
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}
_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_ROUNDS = 10  # in which a folder is emptied that someone still writes to


# --- durability ------------------------------------------------------------------------------


def sync_file(file: Path) -> None:
    """Make the content of `file` durable; its name becomes so with its folder."""
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
    """Make a folder durable with all files and folders in it, but not its own name.

    For a tree of our own making: it holds files and folders, and is not deep.
    """
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            sync_file(Path(folder, name))
        sync_folder(Path(folder))


def sync_within(root: Path, files: Iterable[Path]) -> None:
    """Make `files` durable with their names: each folder from theirs up to `root` is synced."""
    folders = set()
    for file in files:
        sync_file(file)
        folders |= {each for each in file.parents if each.is_relative_to(root)}
    for folder in sorted(folders, reverse=True):  # what is named before the name
        sync_folder(folder)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, durably; one that is there stays."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


@contextmanager
def appearing_whole(target: Path) -> Iterator[Path]:
    """Give a path to write to; the file takes the name `target` at the end, if all went well.

    Content and name are durable then. One writer at a time: what a crash leaves of one, the next
    overwrites.
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
    with appearing_whole(path) as part, part.open("wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)


def link_or_copy(file: Path, target: Path) -> None:
    """Make `target` the same file as `file`, or a copy where the file system refuses to link."""
    try:
        target.hardlink_to(file)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(file, target)


# --- content ---------------------------------------------------------------------------------


def size_and_sha256(file: BufferedReader) -> tuple[int, str]:
    """The size in bytes and the SHA-256 of an open file; afterwards it is at its end."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return file.tell(), digest


def matches(file: BufferedReader, size: int, sha256: str) -> bool:
    """Whether an open file is still what was recorded of it; afterwards it is at its start.

    It takes one read of the file, so call it in a thread. A wrong size is known without it.
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
    """The last `size` bytes of a text file; empty where there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


# --- removal ---------------------------------------------------------------------------------


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there, whatever a program made of it.

    Links are removed, never followed. Depth and length of names do not matter: no path is longer
    than `path` and one name, and at most three descriptors are open.

    Raises:
        OSError: Something cannot be removed, and is left.
    """
    try:
        if not let_in(path):
            path.unlink()
            return
        top = os.open(path, _FOLDER)
    except FileNotFoundError:
        return
    try:
        for rounds_left in reversed(range(_ROUNDS)):
            _empty(top)
            try:
                path.rmdir()
                return
            except OSError as error:
                if error.errno not in _NOT_EMPTY or not rounds_left:
                    raise
    except FileNotFoundError:  # someone else removed the last of it
        return
    finally:
        os.close(top)


def let_in(path: str | Path, parent: int | None = None) -> bool:
    """Give the owner back each right in a folder that a program took away.

    Args:
        path: The folder, or a file, which stays as it is.
        parent: Descriptor of the folder that `path` is relative to.

    Returns:
        Whether it is a folder; a link is not.
    """
    mode = os.stat(path, dir_fd=parent, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(mode):
        return False
    if ~mode & stat.S_IRWXU:
        with suppress(PermissionError):  # another user's, who may have let our group in
            os.chmod(path, stat.S_IMODE(mode) | stat.S_IRWXU, dir_fd=parent)
    return True


def _empty(top: int) -> None:
    """Remove what is in a folder. What is added meanwhile may stay.

    The folders in it wait in a list. Of each, the files are removed and the folders moved up to
    `top`, where they wait for their turn; then it is empty and goes.
    """
    waiting = _remove_files(top)
    while waiting:
        name = waiting.pop()
        with suppress(FileNotFoundError, NotADirectoryError):  # someone else was quicker
            folder = os.open(name, _FOLDER, dir_fd=top)
            try:
                for inner in _remove_files(folder):
                    waiting.append(uuid.uuid4().hex)
                    os.rename(inner, waiting[-1], src_dir_fd=folder, dst_dir_fd=top)
            finally:
                os.close(folder)
            try:
                os.rmdir(name, dir_fd=top)
            except OSError as error:
                if error.errno not in _NOT_EMPTY:
                    raise


def _remove_files(folder: int) -> list[str]:
    """Remove all but the folders in a folder; the names of these."""
    folders = []
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            if let_in(name, folder):
                folders.append(name)
            else:
                os.unlink(name, dir_fd=folder)
    return folders
