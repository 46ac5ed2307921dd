"""Removes what has been kept long enough."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from pfms.clock import iso, utc_now
from pfms.errors import JobNotFound
from pfms.jobs.archive import Archive

log = logging.getLogger(__name__)

_EVERY_SECONDS = 60.0


class Housekeeping:
    """Looks once a minute; 0 hours or days keep for ever."""

    def __init__(self, archive: Archive, volumes_hours: float, records_days: float) -> None:
        self._archive = archive
        self._volumes = timedelta(hours=volumes_hours)
        self._records = timedelta(days=records_days)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, if there is anything to do at all."""
        if self._volumes or self._records:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Let go."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            try:
                await self.tidy()
            except Exception:
                log.exception("housekeeping failed; it is tried again")
            await asyncio.sleep(_EVERY_SECONDS)

    async def tidy(self) -> None:
        """Remove what is due now. What cannot be removed is due the next time."""
        now = utc_now()
        if self._records:
            for job in await self._archive.ended_before(iso(now - self._records), purged=True):
                await self._tidy_one(self._archive.remove, job.id)
        if self._volumes:
            for job in await self._archive.ended_before(iso(now - self._volumes), purged=False):
                await self._tidy_one(self._archive.purge, job.id)

    async def _tidy_one(self, remove: Callable[[str], Awaitable[None]], job_id: str) -> None:
        """Remove of one job what is due; no job keeps the others from their turn."""
        try:
            await remove(job_id)
        except JobNotFound:  # somebody was quicker
            pass
        except Exception:
            log.exception("job %s could not be tidied up; it is tried again", job_id)
