"""Opens and writes what lies below a folder that a program could write to; never through a link.

The plugin's processes may leave anything in a job's folder: links, FIFOs, devices. So each step of
a path is taken from the descriptor of the folder before it, none follows a link, and only regular
files are opened. Nothing here waits for another process.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path, PurePath
from uuid import uuid4

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# another file system; a file of another owner (protected_hardlinks); too many links; not supported
NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}
_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


class NotAFile(FileNotFoundError):
    """There is something else in the place of a file or a folder.

    It is a `FileNotFoundError`, so that nobody takes it for the file.

    Attributes:
        filename: Its path in the folder.
        strerror: What it is: "is a link".
    """

    def __init__(self, name: PurePath, why: str) -> None:
        super().__init__(errno.ENOENT, why, str(name))


def open_file(root: Path, name: str | PurePath, *, alone: bool = False) -> BufferedReader:
    """Open a regular file for reading.

    Args:
        root: The folder; not a link.
        name: The file, relative to `root`.
        alone: Refuse a file that has another name elsewhere (a hard link).

    Raises:
        NotAFile: It, or a folder on the way, is something else, or may not be opened.
        FileNotFoundError: There is nothing.
    """
    path = PurePath(name)
    with opened_folders(root, path.parent) as folders:
        fd = _open_regular(folders[-1], path, os.O_RDONLY, alone=alone)
    return open(path.name, "rb", opener=lambda *_: fd)


def open_or_make(root: Path, name: str) -> int:
    """Open a regular file in `root` to read and write it, or make it; the caller closes it.

    Raises:
        NotAFile: Something else is there, a hard link to another file included.
    """
    with opened_folders(root, PurePath()) as (folder,):
        with suppress(FileExistsError):
            new = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE
            return os.open(name, new, 0o660, dir_fd=folder)
        return _open_regular(folder, PurePath(name), os.O_RDWR, alone=True)


def is_file(root: Path, name: str | PurePath) -> bool:
    """Whether there is a regular file that can be opened."""
    try:
        open_file(root, name).close()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def writing(root: Path, name: str | PurePath, *, durable: bool = True) -> Iterator[BufferedWriter]:
    """Give a new file to write to; without an error, it gets its name at the end, durably.

    Until then it has a name that nobody can know before, so nothing can wait there for the writer.
    A file or a link that has the name already is replaced.

    Args:
        root: The folder; not a link.
        name: The file, relative to `root`.
        durable: False if the caller syncs it, before anyone is told about it.

    Raises:
        NotAFile: A folder on the way is something else.
        FileNotFoundError: A folder on the way does not exist.
    """
    path = PurePath(name)
    with opened_folders(root, path.parent) as folders:
        folder = folders[-1]
        part = part_name(path.name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(part, flags, 0o660, dir_fd=folder)
        try:
            with os.fdopen(fd, "wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(fd)
            os.rename(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)
            raise
        if durable:
            os.fsync(folder)


def link_or_copy(root: Path, name: str | PurePath, target: Path) -> None:
    """Make `target` a hard link to a file, or a copy if the file system refuses to link.

    Raises:
        NotAFile: The file, or a folder on the way, is something else.
        FileNotFoundError: There is nothing.
    """
    path = PurePath(name)
    with opened_folders(root, path.parent) as folders:
        fd = _open_regular(folders[-1], path, os.O_RDONLY)
        with os.fdopen(fd, "rb") as file:
            try:
                os.link(path.name, target, src_dir_fd=folders[-1], follow_symlinks=False)
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                with target.open("xb") as copy:
                    shutil.copyfileobj(file, copy, 1 << 20)
            else:
                if not os.path.samestat(target.lstat(), os.fstat(fd)):
                    target.unlink()
                    raise NotAFile(path, "is no longer the file that it was")


def part_name(name: str) -> str:
    """A new name for a file that will be `name` once it is complete."""
    return f".{name}.{uuid4().hex}.part"


def is_part_name(name: str) -> bool:
    """Whether it looks like one of `part_name`, left by a crash."""
    return name.startswith(".") and name.endswith(".part")


def sync(root: Path, names: Iterable[str | PurePath]) -> None:
    """Make files and their names durable: syncs each file, and every folder from its own to `root`.

    Raises:
        NotAFile: One of them, or a folder on the way, is something else.
        FileNotFoundError: One of them does not exist.
    """
    for name in names:
        path = PurePath(name)
        with opened_folders(root, path.parent) as folders:
            fd = _open_regular(folders[-1], path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            for folder in reversed(folders):
                os.fsync(folder)


def unlink(root: Path, name: str | PurePath) -> None:
    """Remove a file, if it and the folders on the way to it are there, and can be reached."""
    path = PurePath(name)
    with suppress(OSError), opened_folders(root, path.parent) as folders:
        os.unlink(path.name, dir_fd=folders[-1])


@contextmanager
def opened_folder(root: Path) -> Iterator[int]:
    """The descriptor of a folder that is not a link.

    Raises:
        NotAFile: It is something else, or may not be opened.
        FileNotFoundError: There is nothing.
    """
    with opened_folders(root, PurePath()) as (folder,):
        yield folder


@contextmanager
def opened_folders(root: Path, below: PurePath) -> Iterator[list[int]]:
    """The descriptors of `root` and of each folder on the way to `below`, none of them a link.

    Raises:
        NotAFile: One of them is something else, or may not be opened.
        FileNotFoundError: One of them does not exist.
    """
    with ExitStack() as opened:
        folders: list[int] = []

        def step(name: str | Path, place: PurePath) -> None:
            try:
                fd = os.open(name, _FOLDER, dir_fd=folders[-1] if folders else None)
            except OSError as error:
                raise _said(error, place, "is a link or a file in the place of a folder") from None
            opened.callback(os.close, fd)
            folders.append(fd)

        step(root, PurePath(root.name))
        for depth, name in enumerate(below.parts, 1):
            step(name, PurePath(*below.parts[:depth]))
        yield folders


def _open_regular(folder: int, path: PurePath, flags: int, *, alone: bool = False) -> int:
    try:
        _check(os.stat(path.name, dir_fd=folder, follow_symlinks=False), path, alone)
        fd = os.open(path.name, flags | _FILE, dir_fd=folder)  # opening a device may do something
    except OSError as error:
        raise _said(error, path, "is no longer the file that it was") from None
    try:
        _check(os.fstat(fd), path, alone)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(status: os.stat_result, path: PurePath, alone: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = next((name for test, name in _KINDS if test(status.st_mode)), "not a file")
        raise NotAFile(path, f"is {what}")
    if alone and status.st_nlink > 1:
        raise NotAFile(path, "is a hard link to another file")


def _said(error: OSError, path: PurePath, of_links: str) -> OSError:
    """The error to raise for one of the system's; others, like a full table of files, stay."""
    if isinstance(error, NotAFile):
        return error
    if isinstance(error, PermissionError):
        return NotAFile(path, "may not be opened")
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return NotAFile(path, of_links)
    return error
