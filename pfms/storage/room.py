"""Room on the workspace's disk, promised to uploads before their first byte comes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pfms.errors import DiskFull


class Room:
    """Keeps count of what is promised and not written yet.

    Args:
        free_bytes: What is free on the disk; it blocks.
        keep_free: Bytes that no upload may take (PFMS_MIN_FREE_BYTES).
    """

    def __init__(self, free_bytes: Callable[[], int], keep_free: int) -> None:
        self._free_bytes = free_bytes
        self._keep_free = keep_free
        self._promised = 0

    async def left(self) -> int:
        """Bytes that could still be promised; negative where less is free than has to be kept."""
        free = await asyncio.to_thread(self._free_bytes)
        return free - self._promised - self._keep_free

    @asynccontextmanager
    async def reserve(self, size: int = 0) -> AsyncIterator["Reservation"]:
        """Promise room for `size` bytes; what of it is not written is given back at the end.

        Raises:
            DiskFull: There is not so much.
        """
        reservation = Reservation(self)
        await reservation.grow(size)
        try:
            yield reservation
        finally:
            self.release(reservation.unwritten)

    async def promise(self, size: int) -> None:
        """Count `size` bytes more.

        Raises:
            DiskFull: There is not so much.
        """
        if await self.left() < size:
            raise DiskFull(
                "The server's disk has less free than PFMS_MIN_FREE_BYTES and the upload."
            )
        self._promised += size

    def release(self, size: int) -> None:
        """Count `size` bytes less: they are on the disk now, or will not come."""
        self._promised -= size


class Reservation:
    """What is promised to one upload and not written yet, in bytes."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.unwritten = 0

    async def grow(self, size: int) -> None:
        """Promise `size` bytes more.

        Raises:
            DiskFull: There is not so much.
        """
        await self._room.promise(size)
        self.unwritten += size

    async def write(self, size: int) -> None:
        """Say that `size` bytes are about to be written: what was not promised, is checked now.

        Raises:
            DiskFull: There is not so much.
        """
        if size > self.unwritten:
            await self.grow(size - self.unwritten)
        self.unwritten -= size
        self._room.release(size)
