"""Writes an upload to disk: in constant memory, as one copy, whole or not at all."""

import asyncio
import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pfms.errors import TooLarge
from pfms.storage.disk import reporting_full_disk
from pfms.storage.room import Reservation

_BUFFER = 1 << 20  # bytes gathered before a thread writes them, since each switch costs time


@dataclass(frozen=True)
class Upload:
    """A file that was received whole: its path under `uploads/`, size in bytes and SHA-256."""

    path: Path
    size: int
    sha256: str


class UploadWriter:
    """Writes what `feed` is given. Leaving its async context removes the file, unless it was moved.

    `size` is how many bytes it was given so far.

    Args:
        path: The new file.
        limit: Its maximum size, in bytes.
        room: The room on the disk that is promised to it; None to write without a reservation.
    """

    def __init__(self, path: Path, limit: int, room: Reservation | None = None) -> None:
        self._path = path
        self._limit = limit
        self._room = room
        self._file: IO[bytes] | None = None
        self._hash = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._gathered = 0
        self.size = 0

    async def __aenter__(self) -> Self:
        with reporting_full_disk():
            self._file = await asyncio.to_thread(self._path.open, "wb")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        assert self._file is not None  # noqa: S101  (entered before it is left)
        self._path.unlink(missing_ok=True)
        with suppress(OSError):  # the file is not wanted any longer
            self._file.close()

    async def feed(self, piece: bytes) -> None:
        """Write the next bytes.

        Raises:
            TooLarge: There are more than `limit` bytes.
            DiskFull: There is no room for them.
        """
        self.size += len(piece)
        if self.size > self._limit:
            raise TooLarge(f"The file has more than {self._limit} bytes.")
        self._pieces.append(piece)
        self._gathered += len(piece)
        if self._gathered >= _BUFFER:
            await self._flush()

    async def _flush(self) -> None:
        if self._room is not None:
            await self._room.write(self._gathered)
        pieces, self._pieces, self._gathered = self._pieces, [], 0
        with reporting_full_disk():
            await asyncio.to_thread(self._write, b"".join(pieces))

    def _write(self, block: bytes) -> None:
        assert self._file is not None  # noqa: S101  (entered before it is fed)
        self._file.write(block)
        self._hash.update(block)

    async def finish(self) -> Upload:
        """Write the rest and close the file. To keep it, move it before the context ends."""
        await self._flush()
        assert self._file is not None  # noqa: S101
        with reporting_full_disk():
            await asyncio.to_thread(self._file.close)
        return Upload(self._path, self.size, self._hash.hexdigest())
