"""What there is to know, to fetch and to remove of the jobs on record."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic

from pfms.clock import iso, utc_now
from pfms.errors import (
    Gone,
    InvalidParameter,
    JobActive,
    JobFailed,
    JobNotFinished,
    JobNotFound,
    ResultantNotMade,
)
from pfms.jobs import bundle
from pfms.jobs.job import Job, Resultant, State, valid_job_id
from pfms.jobs.runs import Runs
from pfms.jobs.table import Event, Records
from pfms.plugin import spleenseg
from pfms.plugin.types import Progress
from pfms.settings import Settings
from pfms.storage.disk import full_disk_is_told
from pfms.storage.workspace import Workspace
from pfms.volumes import preview


@dataclass(frozen=True)
class JobStatus:
    """A job, and what is not on record: its progress and its place.

    `place` is 0 for the next one; `elapsed` and `expected` in seconds; `estimated_start` in UTC.
    """

    job: Job
    progress: Progress | None = None
    place: int | None = None
    estimated_start: str | None = None
    elapsed: float | None = None
    expected: float | None = None


class Archive:
    """The jobs on record, whatever their state."""

    def __init__(
        self, settings: Settings, workspace: Workspace, records: Records, runs: Runs
    ) -> None:
        self._min_free_bytes = settings.min_free_bytes
        self._workspace = workspace
        self._records = records
        self._runs = runs
        self._readers: Counter[str] = Counter()
        self._draws = asyncio.Semaphore(os.cpu_count() or 1)  # each keeps a core busy

    # --- to know ---------------------------------------------------------------------------

    async def job(self, job_id: str) -> Job:
        """The job as it is on record.

        Raises:
            JobNotFound: There is none.
        """
        valid_job_id(job_id)
        active = self._runs.active.get(job_id)
        job = active.job if active else await self._runs.in_journal(self._records.get, job_id)
        if job is None:
            raise JobNotFound("No job has this ID.")
        return job

    async def status(self, job_id: str) -> JobStatus:
        """The job with its progress and place.

        Raises:
            JobNotFound: There is none.
        """
        return self._status(await self.job(job_id), self._runs.places())

    def _status(self, job: Job, places: dict[str, tuple[int, float]]) -> JobStatus:
        active = self._runs.active.get(job.id)
        if active is None:
            return JobStatus(job)
        expected = self._runs.expected_seconds(job.model.modelID)
        if job.id in places:
            place, seconds = places[job.id]
            start = iso(utc_now() + timedelta(seconds=seconds))
            return JobStatus(job, place=place, estimated_start=start, expected=expected)
        elapsed = monotonic() - active.started if active.started else 0.0
        return JobStatus(job, progress=active.progress, elapsed=elapsed, expected=expected)

    async def page(
        self, *, limit: int, cursor: str | None, state: State | None, model_id: str | None
    ) -> tuple[list[JobStatus], str | None]:
        """Jobs, the newest first, and where the next page starts.

        Raises:
            InvalidParameter: `cursor` is none of ours.
        """
        before = None
        if cursor is not None:
            created_at, separator, job_id = cursor.partition(",")
            if not separator:
                raise InvalidParameter("The cursor is none that this call gave.", "Leave it away.")
            before = (created_at, job_id)
        jobs = await self._runs.in_journal(
            self._records.page, limit=limit + 1, before=before, state=state, model_id=model_id
        )
        following = (
            f"{jobs[limit - 1].created_at},{jobs[limit - 1].id}" if len(jobs) > limit else None
        )
        places = self._runs.places()
        return [self._status(job, places) for job in jobs[:limit]], following

    async def events(self, job_id: str, after: int) -> list[Event]:
        """What has happened to a job after event number `after`."""
        return await self._runs.in_journal(self._records.events, job_id, after)

    # --- to fetch --------------------------------------------------------------------------

    @contextmanager
    def reading(self, job_id: str) -> Iterator[None]:
        """Keep the job's files where they are meanwhile."""
        self._readers[job_id] += 1
        try:
            yield
        finally:
            self._readers[job_id] -= 1
            if not self._readers[job_id]:
                del self._readers[job_id]

    def log(self, job: Job) -> Path:
        """The plugin's log; it need not exist yet."""
        return self._workspace.job(job.id).log

    async def resultant(self, job: Job, resultant: Resultant) -> Path:
        """The file of a resultant.

        Raises:
            JobNotFinished: The job has not ended.
            JobFailed: It has no result.
            ResultantNotMade: Its run did not make this one.
            Gone: Its voxels were purged.
        """
        self._check_succeeded(job)
        if resultant == "logits" and not job.logits:
            raise ResultantNotMade("This run was not asked for logits.", job=job.id)
        tree = self._workspace.job(job.id)
        path = {
            "labels": tree.segmentation,
            "onehot": tree.root / spleenseg.ONEHOT,
            "logits": tree.root / spleenseg.LOGITS,
        }[resultant]
        if job.purged_at or not await asyncio.to_thread(path.is_file):
            raise Gone("The voxels of this job were removed.", job=job.id)
        return path

    def _check_succeeded(self, job: Job) -> None:
        if not job.ended:
            raise JobNotFinished(f"The job is {job.state}.", job=job.id)
        if job.error is not None:
            detail = f"The job {job.state}: {job.error.code}: {job.error.detail}"
            raise JobFailed(detail, job.error.remedy, job=job.id)

    async def preview(self, job: Job) -> bytes:
        """A PNG: slices through the spleen with the labels drawn on them.

        Raises:
            PfmsError: There is no result, as `resultant` says.
        """
        labels = await self.resultant(job, "labels")
        volume = self._workspace.job(job.id).volume
        with self.reading(job.id):
            async with self._draws:
                return await asyncio.to_thread(preview.preview_png, volume, labels)

    async def bundle(self, job: Job, *, voxels: bool) -> Path:
        """A zip of the run under `uploads/`, for the caller to remove.

        Raises:
            JobNotFinished: The job has not ended, and the voxels are wanted.
            Gone: The voxels are wanted and were purged.
            DiskFull: The zip would take of what PFMS_MIN_FREE_BYTES keeps free.
        """
        if voxels and not job.ended:
            raise JobNotFinished(f"The job is {job.state}.", job=job.id)
        if voxels and job.purged_at:
            raise Gone("The voxels of this job were removed.", job=job.id)
        target = self._workspace.new_upload()

        def write() -> None:
            room = self._workspace.free_bytes() - self._min_free_bytes
            tree = self._workspace.job(job.id)
            bundle.write_bundle(tree, target, voxels=voxels, room=room)

        with self.reading(job.id), full_disk_is_told():
            await asyncio.to_thread(write)
        return target

    # --- to remove -------------------------------------------------------------------------

    def in_use(self, job: Job) -> bool:
        """Whether something runs or reads there."""
        return job.id in self._runs.active or job.id in self._readers

    def _check_idle(self, job: Job) -> None:
        if not job.ended or self.in_use(job):
            why = "Its files are being downloaded." if job.ended else f"It is {job.state}."
            raise JobActive(why, "Wait for its end." if job.ended else None, job=job.id)

    async def purge(self, job: Job) -> None:
        """Remove the voxels of an ended job; record and log stay.

        Raises:
            JobActive: It has not ended, or is being read.
            DiskFull: There is still no room to record it.
        """
        self._check_idle(job)
        if job.purged_at:
            return
        with self.reading(job.id), full_disk_is_told():
            await asyncio.to_thread(self._workspace.job(job.id).clear_voxels)
            purged = job.changed(purged_at=iso(utc_now()))
            await self._runs.in_journal(self._records.write, purged)

    async def remove(self, job: Job) -> None:
        """Remove an ended job, record and all.

        Raises:
            JobActive: It has not ended, or is being read.
            DiskFull: There is still no room to record it.
        """
        self._check_idle(job)
        with full_disk_is_told():
            await asyncio.to_thread(self._workspace.remove_job, job.id)
            await self._runs.in_journal(self._records.forget, job.id)

    async def ended_before(self, moment: str, *, purged: bool) -> list[Job]:
        """Jobs that ended before a moment (UTC), for the housekeeping."""
        return await self._runs.in_journal(self._records.ended_before, moment, purged=purged)
