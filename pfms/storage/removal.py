"""Removes files and folders, whatever a program did to them."""

import errno
import math
import os
import stat
import time
import uuid
from contextlib import suppress
from pathlib import Path

_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NAMED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW  # needs no access to it
_SECONDS = 5  # how long a folder that someone is still writing to is emptied again


def discard(path: str | Path, parent: int | None = None) -> None:
    """Remove a file or a folder, if it exists, whatever a program did to it.

    Links are removed, never followed. It may be of any depth, with names of any length: no path is
    longer than `path` and one name, and at most three descriptors are open.

    Args:
        path: What to remove.
        parent: Descriptor of the folder that `path` is relative to.

    Raises:
        OSError: Something cannot be removed, and is still there.
    """
    try:
        if not restore_access(path, parent):
            os.unlink(path, dir_fd=parent)
            return
        top = os.open(path, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        return
    try:
        until = math.inf
        while True:
            _empty(top, until)
            try:
                os.rmdir(path, dir_fd=parent)
                return
            except OSError as error:
                if error.errno not in _NOT_EMPTY or time.monotonic() > until:
                    raise
            until = min(until, time.monotonic() + _SECONDS)
    except FileNotFoundError:  # someone else removed it
        return
    finally:
        os.close(top)


def restore_access(path: str | Path, parent: int | None = None) -> bool:
    """Restore the owner's access to a folder, of which a program may have taken some away.

    Args:
        path: The folder; a file is left as it is.
        parent: Descriptor of the folder that `path` is relative to.

    Returns:
        Whether it is a folder; a link is not.
    """
    mode = os.stat(path, dir_fd=parent, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(mode):
        return False
    if ~mode & stat.S_IRWXU:
        try:
            fd = os.open(path, _NAMED, dir_fd=parent)
        except NotADirectoryError:  # someone replaced it
            return False
        try:
            with suppress(PermissionError):  # it is another user's; our group may have access
                Path(f"/proc/self/fd/{fd}").chmod(stat.S_IMODE(mode) | stat.S_IRWXU)
        finally:
            os.close(fd)
    return True


def _empty(top: int, until: float) -> None:
    """Remove what is in a folder. What is added at the same time may stay.

    After `until` (of the monotonic clock) it leaves the rest: a writer that is quicker than the
    removal would make each attempt longer than the one before.

    Works through a list of the folders in it: the files of each are removed and its subfolders
    moved up to `top` and added to the list; then the folder is empty and is removed.
    """
    waiting = _remove_files(top, until)
    while waiting and time.monotonic() < until:
        name = waiting.pop()
        with suppress(FileNotFoundError, NotADirectoryError):  # someone else removed it
            folder = os.open(name, _FOLDER, dir_fd=top)
            try:
                for inner in _remove_files(folder, until):
                    waiting.append(uuid.uuid4().hex)
                    os.rename(inner, waiting[-1], src_dir_fd=folder, dst_dir_fd=top)
            finally:
                os.close(folder)
            try:
                os.rmdir(name, dir_fd=top)
            except OSError as error:
                if error.errno not in _NOT_EMPTY:
                    raise


def _remove_files(folder: int, until: float) -> list[str]:
    """Remove everything in a folder except its subfolders; returns their names."""
    folders: list[str] = []
    for name in os.listdir(folder):
        if time.monotonic() > until:
            break
        with suppress(FileNotFoundError):
            if restore_access(name, folder):
                folders.append(name)
            else:
                os.unlink(name, dir_fd=folder)
    return folders
