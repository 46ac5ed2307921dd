"""Room on the workspace's disk, promised to uploads before their first byte arrives."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pfms.errors import DiskFull


class Room:
    """Keeps count of the bytes that are promised but not written yet.

    Args:
        free_bytes: Returns what is free on the disk; blocking.
        keep_free: Bytes that no upload may use (PFMS_MIN_FREE_BYTES).
    """

    def __init__(self, free_bytes: Callable[[], int], keep_free: int) -> None:
        self._free_bytes = free_bytes
        self._keep_free = keep_free
        self._promised = 0

    async def left(self) -> int:
        """Bytes that can still be promised; negative if less is free than has to be kept free."""
        free = await asyncio.to_thread(self._free_bytes)
        return free - self._promised - self._keep_free

    @asynccontextmanager
    async def reserve(self, size: int = 0) -> AsyncIterator["Reservation"]:
        """Promise room for `size` bytes; whatever was not written is released at the end.

        Raises:
            DiskFull: There is not enough room.
        """
        reservation = Reservation(self)
        await reservation.grow(size)
        try:
            yield reservation
        finally:
            self.release(reservation.unwritten)

    async def promise(self, size: int) -> None:
        """Count `size` more bytes as promised.

        Raises:
            DiskFull: There is not enough room.
        """
        if await self.left() < size:
            raise DiskFull(
                "The server's disk has less free than PFMS_MIN_FREE_BYTES plus the upload."
            )
        self._promised += size

    def release(self, size: int) -> None:
        """Count `size` bytes less: they are on the disk now, or will not be written."""
        self._promised -= size


class Reservation:
    """What is promised to one upload; `unwritten` is how many bytes of it are not written yet."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.unwritten = 0

    async def grow(self, size: int) -> None:
        """Promise `size` more bytes.

        Raises:
            DiskFull: There is not enough room.
        """
        await self._room.promise(size)
        self.unwritten += size

    async def write(self, size: int) -> None:
        """Announce that `size` bytes are about to be written; any not yet promised are checked now.

        Raises:
            DiskFull: There is not enough room.
        """
        if size > self.unwritten:
            await self.grow(size - self.unwritten)
        self.unwritten -= size
        self._room.release(size)
