"""Reading the jobs table: the rows of jobs and their events."""

import json
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from typing import Protocol, TypeVar

from pfms.access.caller import ANYONE, Caller
from pfms.jobs.events import Event
from pfms.jobs.folders import Unreadable, parse_record
from pfms.jobs.job import Job, State

log = logging.getLogger(__name__)
T = TypeVar("T")

_SELECT = "SELECT id, record FROM jobs WHERE "


class Connected(Protocol):
    """What can call a function with a connection to the table."""

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work`, for what it returns."""
        ...


class Rows:
    """What the table holds. Its calls block; one thread makes them all."""

    def __init__(self, database: Connected) -> None:
        self._database = database
        self._warned_of: set[str] = set()

    def events(self, job_id: str, after: int = 0) -> list[Event]:
        """A job's events after number `after`, oldest first.

        They include every change of state, and the last progress of each stage.
        """
        query = "SELECT n, kind, data FROM events WHERE job_id = ? AND n > ? ORDER BY n"
        rows = self._database.run(lambda table: table.execute(query, (job_id, after)).fetchall())
        return [Event(n, kind, json.loads(data)) for n, kind, data in rows]

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        return next(iter(self._jobs("id = ?", job_id)), None)

    def by_key(self, key: str, owner: str | None = None) -> Job | None:
        """The newest job of `owner` that has this Idempotency-Key, or None."""
        where = "idempotency_key = ? AND owner IS ?"
        return next(iter(self._jobs(where, key, owner, newest_first=True, limit=1)), None)

    def bytes_kept(self, owner: str | None) -> int:
        """How many bytes all jobs of `owner` keep (`Job.bytes_kept`)."""
        query = "SELECT coalesce(sum(bytes), 0) FROM jobs WHERE owner IS ? AND bytes > 0"
        return self._database.run(lambda table: int(table.execute(query, (owner,)).fetchone()[0]))

    def ended_before(self, moment: str, *, purged: bool) -> list[Job]:
        """The jobs that ended before `moment`; with `purged`, also those already purged."""
        return self._jobs("ended_at < ?" + (" AND purged_at IS NULL" * (not purged)), moment)

    def last_seconds(self, count: int) -> list[tuple[str, float]]:
        """Model ID and seconds of the last `count` successful runs, oldest first."""
        jobs = self._jobs("state = 'succeeded'", newest_first=True, limit=count)
        return [(job.model.modelID, job.seconds or 0.0) for job in reversed(jobs)]

    def page(
        self,
        *,
        limit: int,
        before: tuple[str, str] | None = None,
        state: State | None = None,
        model_id: str | None = None,
        volume: str | None = None,
        seen_by: Caller = ANYONE,
    ) -> list[Job]:
        """Jobs, newest first.

        `volume` is a SHA-256; `before` is the (created_at, id) of the last one already seen.
        """
        conditions = ["true"]
        values: list[str | None] = []
        if not seen_by.sees_all:
            conditions.append("owner IS ?")
            values.append(seen_by.name)
        if state is not None:
            conditions.append("state = ?")
            values.append(state)
        if model_id is not None:
            conditions.append("model_id = ?")
            values.append(model_id)
        if volume is not None:
            conditions.append("json_valid(record) AND json_extract(record, '$.volume.sha256') = ?")
            values.append(volume)
        if before is not None:
            conditions.append("(created_at, id) < (?, ?)")
            values.extend(before)
        return self._jobs(" AND ".join(conditions), *values, newest_first=True, limit=limit)

    def _jobs(
        self, where: str, *values: str | None, newest_first: bool = False, limit: int | None = None
    ) -> list[Job]:
        """The jobs that match and whose records can be read; only these count towards `limit`."""
        order = " ORDER BY created_at DESC, id DESC" if newest_first else " ORDER BY created_at, id"

        def select(table: sqlite3.Connection) -> list[Job]:
            with closing(table.execute(_SELECT + where + order, values)) as rows:
                jobs = (self._read_row(job_id, record) for job_id, record in rows)
                return list(islice((job for job in jobs if job is not None), limit))

        return self._database.run(select)

    def _read_row(self, job_id: str, record: str) -> Job | None:
        try:
            return parse_record(job_id, record)
        except Unreadable as why:
            if job_id not in self._warned_of:
                self._warned_of.add(job_id)
                log.warning(
                    "job %s is left alone: its row cannot be read: %s",
                    job_id,
                    why,
                    extra={"job": job_id},
                )
            return None
