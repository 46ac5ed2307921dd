"""Who asked for what, and how it ended: a file that only grows, one JSON object a line.

Lines are written by a thread of its own, in order, and synced to the disk. What cannot be written,
for want of room say, is kept and tried again with each further line and at every look at `trouble`.
"""

import contextlib
import errno
import json
import logging
import os
import queue
import stat
import threading
from pathlib import Path
from typing import Any

from pfms.clock import iso, utc_now
from pfms.errors import StartError

log = logging.getLogger(__name__)

_MOST_KEPT = 100_000  # lines, while they cannot be written
_TRY_AGAIN_SECONDS = 1.0
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK


class AuditLog:
    """The file. Another program may rename it at any time: the next line begins a new one.

    Args:
        path: Where it is; None keeps no such log.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._file = -1
        self._kept = bytearray()  # begins with the rest of a line, if that was written in part
        self._lost = 0
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why lines cannot be written at the moment, in the system's words; None if they can."""
        return self._trouble

    def open(self) -> None:
        """Begin. Blocking.

        Raises:
            StartError: The file cannot be opened.
        """
        if self._path is None:
            return
        try:
            self._open(self._path)
        except OSError as error:
            raise StartError(
                f"The audit log {self._path} cannot be opened: {error.strerror}.",
                "Let PFMS_AUDIT_LOG name a regular file in a folder that pfms may write to.",
            ) from None
        self._thread = threading.Thread(target=self._write_all, args=(self._path,), name="audit")
        self._thread.start()

    def close(self) -> None:
        """Write what is left. Blocking."""
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join()
            self._thread = None

    def write(self, event: str, **facts: Any) -> None:
        """Add a line, soon; facts that are None are left out. Never blocks, never raises."""
        if self._path is not None:
            told = {name: fact for name, fact in facts.items() if fact is not None}
            line = json.dumps({"time": iso(utc_now()), "event": event, **told})
            self._lines.put(f"{line}\n".encode())

    def _write_all(self, path: Path) -> None:
        going = True
        while going:
            # While lines are kept, it tries again without waiting for the next one.
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=_TRY_AGAIN_SECONDS if self._kept else None)
                going = self._keep(line)
            while going and not self._lines.empty():
                going = self._keep(self._lines.get())
            self._flush(path)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _keep(self, line: bytes | None) -> bool:
        """Take a line; False if it was the sign that there are no more."""
        if line is not None and self._trouble and self._kept.count(b"\n") >= _MOST_KEPT:
            self._lost += 1
        elif line is not None:
            self._kept += line
        return line is not None

    def _flush(self, path: Path) -> None:
        try:
            if self._lost:
                lost = {"time": iso(utc_now()), "event": "lost", "lines": self._lost}
                self._kept += f"{json.dumps(lost)}\n".encode()
                self._lost = 0
            self._reopen_if_moved(path)
            while self._kept:
                del self._kept[: os.write(self._file, self._kept)]
            os.fdatasync(self._file)
        except OSError as error:
            if self._trouble is None:
                log.error("The audit log cannot be written: %s", error.strerror)
            self._trouble = error.strerror or "unknown"
        else:
            if self._trouble is not None:
                log.warning("The audit log can be written again.")
            self._trouble = None

    def _reopen_if_moved(self, path: Path) -> None:
        try:
            there = path.stat(follow_symlinks=False)
            here = os.fstat(self._file) if self._file >= 0 else None
            moved = here is None or (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
        except FileNotFoundError:
            moved = True
        # The rest of a line that was written in part belongs into the old file.
        if moved and self._file >= 0:
            end = self._kept.find(b"\n") + 1 if self._in_a_line() else 0
            while end:
                written = os.write(self._file, self._kept[:end])
                del self._kept[:written]
                end -= written
            os.fdatasync(self._file)
        if moved:
            self._open(path)

    def _in_a_line(self) -> bool:
        return bool(self._kept) and not self._kept.startswith(b"{")

    def _open(self, path: Path) -> None:
        file = os.open(path, _FLAGS, 0o640)  # a FIFO fails here, since nothing reads it yet
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(errno.EINVAL, "it is not a regular file")
        if self._file >= 0:
            os.close(self._file)
        self._file = file
