"""Removes files and folders, whatever a program did to them."""

import errno
import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_ROUNDS = 10  # attempts to empty a folder that someone is still writing to


def discard(path: Path) -> None:
    """Remove a file or a folder, if it exists, whatever a program did to it.

    Links are removed, never followed. It may be of any depth, with names of any length: no path is
    longer than `path` and one name, and at most three descriptors are open.

    Raises:
        OSError: Something cannot be removed, and is still there.
    """
    try:
        if not restore_access(path):
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
        with suppress(PermissionError):  # it is another user's; our group may have access
            os.chmod(path, stat.S_IMODE(mode) | stat.S_IRWXU, dir_fd=parent)
    return True


def _empty(top: int) -> None:
    """Remove what is in a folder. What is added at the same time may stay.

    Works through a list of the folders in it: the files of each are removed and its subfolders
    moved up to `top` and added to the list; then the folder is empty and is removed.
    """
    waiting = _remove_files(top)
    while waiting:
        name = waiting.pop()
        with suppress(FileNotFoundError, NotADirectoryError):  # someone else removed it
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
    """Remove everything in a folder except its subfolders; returns their names."""
    folders = []
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            if restore_access(name, folder):
                folders.append(name)
            else:
                os.unlink(name, dir_fd=folder)
    return folders
