"""Keeps what a run prints: all of it up to a bound, beyond that its head and its tail."""

import asyncio
import contextlib
import logging
import os
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from pfms.aio import in_own_thread, to_the_end
from pfms.storage.inside import open_or_make

log = logging.getLogger(__name__)

_PIECE = 256 << 10  # bytes that are read at a time
_IN_THE_PIPE = 1 << 20  # bytes; more than a pipe holds

OnOutput = Callable[[bytes], None]


class BoundedLog:
    """A file of at most `most` bytes, to which more may be written. Blocking.

    The first half keeps the head. When the second half is full, the end of it is moved to its
    start, behind a line that says how many bytes were left out. So a reader finds the head and the
    newest output at any time, and what is written is copied at most once more.
    """

    def __init__(self, path: Path, most: int) -> None:
        """Open the file to append to it.

        Raises:
            OSError: It cannot be opened, or is no regular file of its own.
        """
        self._file = open_or_make(path.parent, path.name)
        self._size = os.lseek(self._file, 0, os.SEEK_END)
        self._most = most
        self._tail_begins = self._head = most // 2
        self._left_out = 0
        self._lost = 0  # bytes for which the disk had no room
        self.piece = min(_PIECE, most // 8)

    def write(self, data: bytes) -> None:
        """Append at most `piece` bytes. On a full disk they are lost: the run goes on."""
        if self._size + len(data) > self._most:
            self._leave_out()
        self._size += self._write_at(self._size, data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
        if self._lost:
            log.warning("%d bytes that a run printed could not be written to its log", self._lost)

    def _leave_out(self) -> None:
        start = max(self._size - self._most // 4, self._tail_begins)
        tail = os.pread(self._file, self._size - start, start)
        self._left_out += start - self._tail_begins
        note = f"\n[pfms left out {self._left_out} bytes here: PFMS_MAX_LOG_BYTES]\n".encode()
        self._tail_begins = self._head + len(note)
        self._size = self._head + self._write_at(self._head, note + tail)
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._size)

    def _write_at(self, position: int, data: bytes) -> int:
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, data[written:], position + written)
        except OSError:
            self._lost += len(data) - written
        return written


class _Pump:
    """A pipe for the output of a run, and the thread that empties it into a log."""

    def __init__(self, path: Path, most: int, on_output: OnOutput | None) -> None:
        self._log = BoundedLog(path, most)
        self._on_output = on_output
        try:
            self._our_end, self.child_end = os.pipe()
            self._stop_end, self._stopper = os.pipe()
        except OSError:
            self._log.close()
            raise
        os.set_blocking(self._our_end, False)

    def stop(self) -> None:
        """Have `pump` return once it has read what is in the pipe now."""
        os.write(self._stopper, b".")

    def pump(self) -> None:
        """Read until `stop`, then close everything. Blocking."""
        poll = select.poll()
        poll.register(self._our_end, select.POLLIN)
        poll.register(self._stop_end, select.POLLIN)
        try:
            while self._stop_end not in [ready for ready, _ in poll.poll()]:
                self._read()
            left = _IN_THE_PIPE  # not for ever: something may still be writing
            while left > 0 and (read := self._read()):
                left -= read
        finally:
            self.close()

    def close(self) -> None:
        """Close the log and both pipes."""
        self._log.close()
        for end in (self._our_end, self.child_end, self._stop_end, self._stopper):
            os.close(end)

    def _read(self) -> int:
        try:
            data = os.read(self._our_end, self._log.piece)
        except BlockingIOError:
            return 0
        self._log.write(data)
        if self._on_output is not None:
            self._on_output(data)
        return len(data)


@asynccontextmanager
async def keeping_output(
    path: Path, most: int, on_output: OnOutput | None = None
) -> AsyncIterator[int]:
    """Give a descriptor for stdout and stderr of a run; what is written to it goes to a log.

    It is this process's own, to be handed to a child. When the block is left, what was written so
    far is in the log; anything that a process writes later fails.

    Args:
        path: The log, which is appended to.
        most: The most bytes that the log may have.
        on_output: Called with every piece of output, in a thread.

    Raises:
        OSError: The log cannot be opened.
    """
    opening = asyncio.ensure_future(asyncio.to_thread(_Pump, path, most, on_output))
    try:
        pump = await to_the_end(opening)
    except asyncio.CancelledError:
        if opening.exception() is None:
            opening.result().close()
        raise
    pumping = in_own_thread(pump.pump)
    try:
        yield pump.child_end
    finally:
        pump.stop()
        await to_the_end(pumping)
