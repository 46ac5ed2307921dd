"""Removes volumes and records that have been kept long enough."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from pfms.clock import iso, utc_now
from pfms.errors import JobNotFound
from pfms.jobs.archive import Archive

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 60.0


class Housekeeping:
    """Looks once a minute for what is due. With 0 hours or days, nothing is ever due."""

    def __init__(self, archive: Archive, volumes_hours: float, records_days: float) -> None:
        self._archive = archive
        self._volumes = timedelta(hours=volumes_hours)
        self._records = timedelta(days=records_days)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start, unless the settings keep everything."""
        if self._volumes or self._records:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            try:
                await self.tidy()
            except Exception:
                log.exception("housekeeping failed and will be tried again")
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def tidy(self) -> None:
        """Remove what is due now. What cannot be removed is tried again next time."""
        now = utc_now()
        if self._records:
            for job in await self._archive.ended_before(iso(now - self._records), purged=True):
                await self._tidy_one(self._archive.remove, job.id)
        if self._volumes:
            for job in await self._archive.ended_before(iso(now - self._volumes), purged=False):
                await self._tidy_one(self._archive.purge, job.id)

    async def _tidy_one(self, remove: Callable[[str], Awaitable[None]], job_id: str) -> None:
        """Tidy one job; a failure does not stop the others from being tidied."""
        try:
            await remove(job_id)
        except JobNotFound:  # someone else removed it first
            pass
        except Exception:
            log.exception(
                "job %s could not be tidied up and will be tried again",
                job_id,
                extra={"job": job_id},
            )
