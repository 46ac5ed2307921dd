"""The threads that call the jobs table: one writes, so that writes stay in order; one reads.

What was written before a read begins, it sees. It does not wait for writes that still wait
themselves, say for another program that has locked the table.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

from pfms.errors import NotReady
from pfms.jobs.rows import Rows
from pfms.jobs.table import Records

P = ParamSpec("P")
T = TypeVar("T")

_RETRY_SECONDS = 5


class Journal:
    """The jobs table, for use from the event loop."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self._reader = records.reader()
        self._rows = Rows(self._reader)
        self._thread = ThreadPoolExecutor(1, "journal")
        self._reading = ThreadPoolExecutor(1, "journal-reads")

    async def call(self, method: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Call a method of `records` in the journal's thread; raises whatever it raises."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: method(*args, **named))

    async def read(
        self, method: Callable[Concatenate[Rows, P], T], *args: P.args, **named: P.kwargs
    ) -> T:
        """Call a method of `Rows` beside whatever is being written; raises whatever it raises.

        Raises:
            NotReady: Another program has locked the table.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._reading, lambda: method(self._rows, *args, **named)
            )
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                raise NotReady(
                    "Another program has locked the jobs table.", retry_after=_RETRY_SECONDS
                ) from None
        # It is damaged, say: the writer mends it.
        return await self.call(method, self.records, *args, **named)

    async def close(self) -> None:
        """Close the table and end the threads."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._reading, self._reader.close)
        await self.call(self.records.close)
        for thread in (self._reading, self._thread):
            await asyncio.to_thread(thread.shutdown)
