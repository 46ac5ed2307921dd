"""How files and folders go, whatever a program made of them."""

import errno
import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


_ROUNDS = 10  # in which a folder is emptied that someone still writes to


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there, whatever a program made of it.

    Links are removed, never followed. Depth and length of names do not matter: no path is longer
    than `path` and one name, and at most three descriptors are open.

    Raises:
        OSError: Something cannot be removed, and is left.
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
    except FileNotFoundError:  # someone else removed the last of it
        return
    finally:
        os.close(top)


def restore_access(path: str | Path, parent: int | None = None) -> bool:
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
            if restore_access(name, folder):
                folders.append(name)
            else:
                os.unlink(name, dir_fd=folder)
    return folders
