"""Locks on the files of ended jobs: any number of readers, or one remover."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field


@dataclass
class _Hold:
    """The holders of one job's files."""

    users: int = 0  # tasks that refer to this object: it is dropped with the last
    readers: int = 0
    removers: int = 0  # the active one and those that wait
    removing: bool = False
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_until(self, free: Callable[[], bool]) -> None:
        while not free():
            self.released.clear()
            await self.released.wait()


class Holds:
    """A lock for each job: shared to read its files, exclusive to remove them.

    A waiting remover goes before readers that come later, so readers cannot hold a job forever.
    """

    def __init__(self) -> None:
        self._holds: dict[str, _Hold] = {}

    @asynccontextmanager
    async def reading(self, job_id: str) -> AsyncIterator[None]:
        """Hold the job so that nothing removes its files."""
        with self._hold(job_id) as hold:
            await hold.wait_until(lambda: not hold.removers)
            hold.readers += 1
            try:
                yield
            finally:
                hold.readers -= 1
                hold.released.set()

    @asynccontextmanager
    async def removing(self, job_id: str) -> AsyncIterator[None]:
        """Hold the job so that nothing else opens or removes its files."""
        with self._hold(job_id) as hold:
            hold.removers += 1
            try:
                await hold.wait_until(lambda: not (hold.readers or hold.removing))
                hold.removing = True
                try:
                    yield
                finally:
                    hold.removing = False
            finally:
                hold.removers -= 1
                hold.released.set()

    @contextmanager
    def _hold(self, job_id: str) -> Iterator[_Hold]:
        hold = self._holds.setdefault(job_id, _Hold())
        hold.users += 1
        try:
            yield hold
        finally:
            hold.users -= 1
            if not hold.users:
                del self._holds[job_id]
