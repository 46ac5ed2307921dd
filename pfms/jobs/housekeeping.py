"""Removes what has been kept long enough."""

import asyncio
import logging
from datetime import timedelta

from pfms.clock import iso, utc_now
from pfms.jobs.archive import Archive
from pfms.jobs.job import Job

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
            self._task = asyncio.create_task(self._keep_house())

    async def stop(self) -> None:
        """Let go."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _keep_house(self) -> None:
        while True:
            try:
                await self.tidy()
            except Exception:
                log.exception("housekeeping failed; it is tried again")
            await asyncio.sleep(_EVERY_SECONDS)

    async def tidy(self) -> None:
        """Remove what is due now. What is being read is due the next time."""
        now = utc_now()
        if self._records:
            for job in await self._due(iso(now - self._records), purged=True):
                await self._archive.remove(job)
        if self._volumes:
            for job in await self._due(iso(now - self._volumes), purged=False):
                await self._archive.purge(job)

    async def _due(self, moment: str, *, purged: bool) -> list[Job]:
        jobs = await self._archive.ended_before(moment, purged=purged)
        return [job for job in jobs if not self._archive.in_use(job)]
