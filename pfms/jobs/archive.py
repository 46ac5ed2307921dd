"""What there is to know, to fetch and to remove of the jobs on record."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from io import BufferedReader
from pathlib import Path
from time import monotonic

from pfms.aio import in_thread, to_the_end
from pfms.clock import iso, utc_now
from pfms.errors import (
    BadResult,
    Gone,
    InvalidParameter,
    JobActive,
    JobFailed,
    JobNotFinished,
    JobNotFound,
    ResultantNotMade,
)
from pfms.jobs import bundle
from pfms.jobs.events import Event
from pfms.jobs.holds import Holds
from pfms.jobs.job import Job, State, valid_job_id
from pfms.jobs.journal import Journal
from pfms.jobs.runs import Runs
from pfms.plugin import PLUGIN
from pfms.plugin.types import Progress, Resultant
from pfms.storage.disk import reporting_full_disk
from pfms.storage.files import matches
from pfms.storage.room import Room
from pfms.storage.workspace import Workspace
from pfms.volumes import preview

_MAX_BUNDLES = 2  # at once: each is a copy of a job on the disk


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
        self, workspace: Workspace, journal: Journal, runs: Runs, holds: Holds, room: Room
    ) -> None:
        self._workspace = workspace
        self._journal = journal
        self._records = journal.records
        self._runs = runs
        self._holds = holds
        self._room = room
        self._preview_slots = asyncio.Semaphore(os.cpu_count() or 1)  # each keeps a core busy
        self._bundle_slots = asyncio.Semaphore(_MAX_BUNDLES)

    # --- to know ---------------------------------------------------------------------------

    async def job(self, job_id: str) -> Job:
        """The job as it is on record.

        Raises:
            JobNotFound: There is none.
        """
        valid_job_id(job_id)
        active = self._runs.active.get(job_id)
        job = active.job if active else await self._journal.call(self._records.get, job_id)
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
        expected = self._runs.estimates.expected(job.model.modelID)
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
            InvalidParameter: `cursor` is not one of ours.
        """
        before = None
        if cursor is not None:
            created_at, separator, job_id = cursor.partition(",")
            if not separator:
                raise InvalidParameter(
                    "The cursor is not one that this call gave.", "Leave it out to start anew."
                )
            before = (created_at, job_id)
        jobs = await self._journal.call(
            self._records.page, limit=limit + 1, before=before, state=state, model_id=model_id
        )
        following = (
            f"{jobs[limit - 1].created_at},{jobs[limit - 1].id}" if len(jobs) > limit else None
        )
        places = self._runs.places()
        return [self._status(job, places) for job in jobs[:limit]], following

    async def events(self, job_id: str, after: int) -> list[Event]:
        """What has happened to a job after event number `after`."""
        return await self._journal.call(self._records.events, job_id, after)

    # --- to fetch --------------------------------------------------------------------------
    # A file is opened while nothing may remove it. What is removed after that can still be read
    # to its end.

    async def log(self, job_id: str) -> BufferedReader | None:
        """The plugin's log, opened; None before the plugin has started.

        Raises:
            JobNotFound: There is no such job.
        """
        async with self._holds.reading(job_id):
            await self.job(job_id)
            try:
                return await asyncio.to_thread(self._workspace.job(job_id).log.open, "rb")
            except FileNotFoundError:
                return None

    async def resultant(self, job_id: str, resultant: Resultant) -> BufferedReader:
        """The file of a resultant, opened, when it is still what the run wrote.

        Raises:
            JobNotFound: There is no such job.
            JobNotFinished: The job has not ended.
            JobFailed: It has no result.
            ResultantNotMade: Its run did not make this one.
            Gone: Its voxels were purged.
            BadResult: The file was damaged since.
        """
        async with self._holds.reading(job_id):
            job = await self._succeeded(job_id)
            return await asyncio.to_thread(self._open_resultant, job, resultant)

    async def _succeeded(self, job_id: str) -> Job:
        job = await self.job(job_id)
        if not job.ended:
            raise JobNotFinished(f"The job is {job.state}.", job=job.id)
        if job.error is not None:
            detail = f"The job {job.state}: {job.error.code}: {job.error.detail}"
            raise JobFailed(detail, job.error.remedy, job=job.id)
        return job

    def _open_resultant(self, job: Job, resultant: Resultant) -> BufferedReader:
        if resultant == "logits" and not job.logits:
            raise ResultantNotMade("This run was not asked for logits.", job=job.id)
        try:
            if job.purged_at:
                raise FileNotFoundError
            file = self._path_of(job.id, resultant).open("rb")
        except FileNotFoundError:
            raise Gone("The voxels of this job were removed.", job=job.id) from None
        facts = job.segmentation.facts(resultant) if job.segmentation else None
        if facts is not None and not matches(file, facts.size, facts.sha256):
            file.close()
            raise BadResult(
                "The result on the server's disk is not what the run wrote: it was damaged since.",
                "POST to the job's /rerun to run it again.",
                job=job.id,
            )
        return file

    def _path_of(self, job_id: str, resultant: Resultant) -> Path:
        tree = self._workspace.job(job_id)
        written = PLUGIN.outputs.get(resultant)
        return tree.segmentation if written is None else tree.root / written

    async def preview(self, job_id: str) -> bytes:
        """A PNG: slices through the spleen with the labels drawn on them.

        Raises:
            PfmsError: There is no result, as `resultant` says.
        """
        async with self._preview_slots, self._holds.reading(job_id):
            job = await self._succeeded(job_id)
            return await in_thread(self._draw, job)

    def _draw(self, job: Job) -> bytes:
        self._open_resultant(job, "labels").close()
        tree = self._workspace.job(job.id)
        return preview.preview_png(tree.volume, tree.segmentation)

    async def bundle(self, job_id: str, *, voxels: bool) -> BufferedReader:
        """A zip of the run, opened; it vanishes when it is closed.

        Raises:
            JobNotFound: There is no such job.
            JobNotFinished: The job has not ended, and the voxels are wanted.
            Gone: The voxels are wanted and were purged.
            DiskFull: The zip would take of what PFMS_MIN_FREE_BYTES keeps free.
        """
        async with self._bundle_slots, self._holds.reading(job_id):
            job = await self.job(job_id)
            if voxels and not job.ended:
                raise JobNotFinished(f"The job is {job.state}.", job=job.id)
            if voxels and job.purged_at:
                raise Gone("The voxels of this job were removed.", job=job.id)
            with reporting_full_disk():
                files = bundle.files_of(self._workspace.job(job_id), voxels=voxels)
                async with AsyncExitStack() as room:
                    if voxels:
                        size = await asyncio.to_thread(bundle.size_of, files)
                        await room.enter_async_context(self._room.reserve(size))
                    return await in_thread(self._write_bundle, job_id, files)

    def _write_bundle(self, job_id: str, files: Sequence[Path]) -> BufferedReader:
        with self._workspace.scratch() as target:
            bundle.write_bundle(self._workspace.job(job_id).root, files, target)
            return target.open("rb")

    # --- to remove -------------------------------------------------------------------------

    async def purge(self, job_id: str) -> None:
        """Remove the voxels of an ended job; record and log stay.

        Raises:
            JobNotFound: There is no such job.
            JobActive: It has not ended.
            DiskFull: There is still no room to record it.
        """
        async with self._holds.removing(job_id):
            job = await self._ended(job_id)
            if job.purged_at is None:
                await to_the_end(self._purge(job))

    async def _purge(self, job: Job) -> None:
        with reporting_full_disk():
            await asyncio.to_thread(self._workspace.job(job.id).clear_voxels)
            await self._journal.call(self._records.write, job.purged())

    async def remove(self, job_id: str) -> None:
        """Remove an ended job, record and all. Nothing of it is left afterwards.

        Raises:
            JobNotFound: There is no such job.
            JobActive: It has not ended.
            DiskFull: There is still no room to record it.
        """
        async with self._holds.removing(job_id):
            await self._ended(job_id)
            await to_the_end(self._remove(job_id))

    async def _remove(self, job_id: str) -> None:
        with reporting_full_disk():
            await asyncio.to_thread(self._workspace.remove_job, job_id)
            await self._journal.call(self._records.forget, job_id)

    async def _ended(self, job_id: str) -> Job:
        """The job as it is now that nothing else changes it."""
        job = await self.job(job_id)
        if not job.ended or job_id in self._runs.active:
            raise JobActive(f"It is {job.state}.", job=job_id)
        return job

    async def ended_before(self, moment: str, *, purged: bool) -> list[Job]:
        """Jobs that ended before a moment (UTC), for the housekeeping."""
        return await self._journal.call(self._records.ended_before, moment, purged=purged)
