"""What a run wrote on a node, as pieces that travel, and their way back into the job's folder."""

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from io import BufferedWriter
from pathlib import Path, PurePath
from typing import Any

from pfms.storage import inside

_CHUNK = 8 << 20  # bytes of a file in a piece

Piece = tuple[Any, ...]
"""("folder", NAME, MODE), ("link", NAME, TARGET), ("fifo", NAME), or ("file", NAME, MODE), after
which its content follows as ("data", BYTES) and ("closed",). Names are relative to the folder."""


def packed(root: Path, without: Collection[str]) -> Iterator[Piece]:
    """Everything below a folder, folders before what is in them. Blocking.

    Links are told as links. Sockets and devices are left out, and so is what may not be read.

    Args:
        root: The folder.
        without: Names relative to it that stay here, with all that is in them.
    """
    folders = [""]
    while folders:
        within = folders.pop()
        for entry in sorted(os.scandir(root / within), key=lambda entry: entry.name):
            name = f"{within}/{entry.name}" if within else entry.name
            if name in without:
                continue
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                folders.append(name)
                yield "folder", name, stat.S_IMODE(mode)
            elif stat.S_ISLNK(mode):
                yield "link", name, os.readlink(entry.path)  # noqa: PTH115 - an entry has a str
            elif stat.S_ISFIFO(mode):
                yield "fifo", name
            elif stat.S_ISREG(mode):
                with contextlib.suppress(inside.NotAFile), inside.open_file(root, name) as file:
                    yield "file", name, stat.S_IMODE(mode)
                    while data := file.read(_CHUNK):
                        yield "data", data
                    yield ("closed",)


class Unpacking:
    """Writes pieces into a job's folder, through no link and nowhere else. Blocking."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file: BufferedWriter | None = None
        self._opened = ExitStack()

    def take(self, piece: Piece) -> None:
        """Write a piece.

        Raises:
            OSError: It cannot be written.
            ValueError: It would be outside of the folder.
        """
        kind, *rest = piece
        if kind == "data" and self._file is not None:
            self._file.write(rest[0])
        elif kind == "closed":
            self._opened.close()
            self._file = None
        elif kind == "file":
            name, mode = rest
            self._file = self._opened.enter_context(
                inside.writing(self._root, _checked(name), durable=False)
            )
            os.fchmod(self._file.fileno(), mode)
        else:
            self._make(kind, _checked(rest[0]), *rest[1:])

    def abandon(self) -> None:
        """Leave no half of a file behind."""
        with contextlib.suppress(_Abandoned):
            self._opened.__exit__(_Abandoned, _Abandoned(), None)

    def _make(self, kind: str, path: PurePath, *rest: Any) -> None:
        with inside.opened_folders(self._root, path.parent) as folders:
            folder = folders[-1]
            if kind == "folder":
                with contextlib.suppress(FileExistsError):  # the outputdir is there before a run
                    os.mkdir(path.name, dir_fd=folder)
                os.chmod(path.name, rest[0] | stat.S_IRWXU, dir_fd=folder, follow_symlinks=False)
            elif kind == "link":
                os.symlink(rest[0], path.name, dir_fd=folder)
            elif kind == "fifo":
                os.mkfifo(path.name, dir_fd=folder)


class _Abandoned(Exception):
    """No more pieces come."""


def _checked(name: str) -> PurePath:
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"a node sent {name!r}, which is not in the job's folder")
    return path
