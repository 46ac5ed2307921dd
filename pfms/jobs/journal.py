"""The one thread that makes every call to the jobs table, so that writes stay in order."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from pfms.jobs.table import Records

P = ParamSpec("P")
T = TypeVar("T")


class Journal:
    """The jobs table, for use from the event loop."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self._thread = ThreadPoolExecutor(1, "journal")

    async def call(self, method: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Call a method of `records` in the journal's thread; raises whatever it raises."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: method(*args, **named))

    async def close(self) -> None:
        """Close the table and end the thread."""
        await self.call(self.records.close)
        await asyncio.to_thread(self._thread.shutdown)
