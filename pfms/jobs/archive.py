"""The jobs on record: look them up, fetch their files, remove them."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from io import BufferedReader
from pathlib import Path
from time import monotonic

from pfms.access.caller import ANYONE, Caller
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
from pfms.jobs.rows import Rows
from pfms.jobs.runs import Runs
from pfms.plugin import PLUGIN
from pfms.plugin.types import Progress, Resultant
from pfms.storage.disk import reporting_full_disk
from pfms.storage.files import matches
from pfms.storage.inside import NotAFile
from pfms.storage.room import Room
from pfms.storage.workspace import JobTree, Workspace
from pfms.volumes import preview
from pfms.volumes.planes import Wanted

_MAX_BUNDLES = 2  # at a time: each is a copy of a job on the disk


@dataclass(frozen=True)
class JobStatus:
    """A job, and what is not on record: its progress and its place in the queue.

    `place` is 0 for the next job; `elapsed` and `expected` are seconds, `estimated_start` is UTC.
    """

    job: Job
    progress: Progress | None = None
    fraction: float | None = None
    place: int | None = None
    estimated_start: str | None = None
    elapsed: float | None = None
    expected: float | None = None


class Archive:
    """All jobs on record, in any state."""

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

    # --- looking up ------------------------------------------------------------------------

    async def job(self, job_id: str, *, seen_by: Caller = ANYONE) -> Job:
        """The job as it is on record.

        Raises:
            JobNotFound: There is no such job, or none that the caller may know of.
        """
        valid_job_id(job_id)
        active = self._runs.active.get(job_id)
        job = active.job if active else await self._journal.read(Rows.get, job_id)
        if job is None or not seen_by.sees(job.owner):
            raise JobNotFound("No job has this ID.")
        return job

    async def status(self, job_id: str) -> JobStatus:
        """The job with its progress and its place in the queue.

        Raises:
            JobNotFound: There is no such job.
        """
        return self.status_of(await self.job(job_id))

    def status_of(self, job: Job) -> JobStatus:
        """A job that was just looked up, with its progress and its place in the queue."""
        active = self._runs.active.get(job.id)
        if active is None:
            return JobStatus(job)
        return self._status(active.job, self._runs.places())

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
        return JobStatus(
            job,
            progress=active.progress,
            fraction=active.fraction,
            elapsed=elapsed,
            expected=expected,
        )

    async def page(
        self,
        *,
        seen_by: Caller,
        limit: int,
        cursor: str | None,
        state: State | None,
        model_id: str | None,
        volume: str | None,
    ) -> tuple[list[JobStatus], str | None]:
        """A page of the jobs that a caller may see, newest first, and the cursor of the next page.

        Raises:
            InvalidParameter: `cursor` did not come from this method.
        """
        before = None
        if cursor is not None:
            created_at, separator, job_id = cursor.partition(",")
            if not separator:
                raise InvalidParameter(
                    "The cursor did not come from this call.", "Leave it out to start over."
                )
            before = (created_at, job_id)
        jobs = await self._journal.read(
            Rows.page,
            limit=limit + 1,
            before=before,
            state=state,
            model_id=model_id,
            volume=volume,
            seen_by=seen_by,
        )
        following = (
            f"{jobs[limit - 1].created_at},{jobs[limit - 1].id}" if len(jobs) > limit else None
        )
        places = self._runs.places()
        return [self._status(job, places) for job in jobs[:limit]], following

    async def events(self, job_id: str, after: int) -> list[Event]:
        """The events of a job after event number `after`."""
        return await self._journal.read(Rows.events, job_id, after)

    # --- fetching --------------------------------------------------------------------------
    # A file is opened while the job is held, so that nothing removes it. Once opened, it can be
    # read to its end even if it is removed.

    async def log(self, job_id: str) -> BufferedReader | None:
        """The plugin's log, opened; None if the plugin has not started yet, or replaced it.

        Raises:
            JobNotFound: There is no such job.
        """
        async with self._holds.reading(job_id):
            await self.job(job_id)
            tree = self._workspace.job(job_id)
            try:
                return await asyncio.to_thread(tree.open, tree.log, alone=True)
            except FileNotFoundError:
                return None

    async def resultant(self, job_id: str, resultant: Resultant) -> BufferedReader:
        """The file of a resultant, opened, provided it is still what the run wrote.

        Raises:
            JobNotFound: There is no such job.
            JobNotFinished: The job has not ended.
            JobFailed: It has no result.
            ResultantNotMade: Its run did not make this resultant.
            Gone: Its voxels were purged.
            BadResult: The file has been damaged since the run.
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
            file = self._workspace.job(job.id).open(self._path_of(job.id, resultant))
        except NotAFile as error:
            raise _damaged(job, f"it {error.strerror}") from None
        except FileNotFoundError:
            raise Gone("The voxels of this job were removed.", job=job.id) from None
        facts = job.segmentation.facts(resultant) if job.segmentation else None
        if facts is not None and not matches(file, facts.size, facts.sha256):
            file.close()
            raise _damaged(job, "it has been damaged")
        return file

    def _path_of(self, job_id: str, resultant: Resultant) -> Path:
        tree = self._workspace.job(job_id)
        written = PLUGIN.outputs.get(resultant)
        return tree.segmentation if written is None else tree.root / written

    async def volume(self, job_id: str) -> BufferedReader:
        """The volume of a job in any state, opened: what was sent, in the form the plugin gets.

        Raises:
            JobNotFound: There is no such job.
            Gone: Its voxels were purged.
        """
        async with self._holds.reading(job_id):
            job = await self.job(job_id)
            return await asyncio.to_thread(self._open_volume, job)

    def _open_volume(self, job: Job) -> BufferedReader:
        tree = self._workspace.job(job.id)
        try:
            if job.purged_at:
                raise FileNotFoundError
            return tree.open(tree.volume, alone=True)  # the job has a copy of its own
        except FileNotFoundError:
            raise Gone("The volume of this job was removed.", job=job.id) from None

    async def preview(self, job_id: str, wanted: Wanted) -> bytes:
        """A PNG: slices through the spleen with the labels drawn on them.

        Args:
            job_id: The job.
            wanted: Which slices; it must have been checked.

        Raises:
            PfmsError: As for `resultant`.
        """
        async with self._preview_slots, self._holds.reading(job_id):
            job = await self._succeeded(job_id)
            return await in_thread(self._draw, job, wanted)

    def _draw(self, job: Job, wanted: Wanted) -> bytes:
        with self._open_resultant(job, "labels") as labels, self._open_volume(job) as volume:
            return preview.preview_png(volume, labels, wanted)

    async def bundle(self, job_id: str, *, voxels: bool) -> BufferedReader:
        """A zip of the run, opened. It has no name on the disk, so it is gone when closed.

        Raises:
            JobNotFound: There is no such job.
            JobNotFinished: The voxels are wanted, and the job has not ended.
            Gone: The voxels are wanted, and were purged.
            DiskFull: With the zip, less than PFMS_MIN_FREE_BYTES would be free.
        """
        async with self._bundle_slots, self._holds.reading(job_id):
            job = await self.job(job_id)
            if voxels and not job.ended:
                raise JobNotFinished(f"The job is {job.state}.", job=job.id)
            if voxels and job.purged_at:
                raise Gone("The voxels of this job were removed.", job=job.id)
            with reporting_full_disk():
                tree = self._workspace.job(job_id)
                files = bundle.files_of(tree, voxels=voxels)
                async with AsyncExitStack() as room:
                    if voxels:
                        size = await asyncio.to_thread(bundle.size_of, tree, files)
                        await room.enter_async_context(self._room.reserve(size))
                    return await in_thread(self._write_bundle, tree, files)

    def _write_bundle(self, tree: JobTree, files: Sequence[Path]) -> BufferedReader:
        with self._workspace.scratch() as target:
            bundle.write_bundle(tree, files, target)
            return target.open("rb")

    # --- removing --------------------------------------------------------------------------

    async def purge(self, job_id: str) -> None:
        """Remove the voxels of an ended job; its record and log stay.

        Raises:
            JobNotFound: There is no such job.
            JobActive: It has not ended.
            DiskFull: There is no room to record it, not even after the removal.
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
        """Remove an ended job completely, with its record.

        Raises:
            JobNotFound: There is no such job.
            JobActive: It has not ended.
            DiskFull: There is no room to record it, not even after the removal.
        """
        async with self._holds.removing(job_id):
            await self._ended(job_id)
            await to_the_end(self._remove(job_id))

    async def _remove(self, job_id: str) -> None:
        with reporting_full_disk():
            await asyncio.to_thread(self._workspace.remove_job, job_id)
            await self._journal.call(self._records.forget, job_id)

    async def _ended(self, job_id: str) -> Job:
        """The job, if it has ended. Call it while holding the job for removal."""
        job = await self.job(job_id)
        if not job.ended or job_id in self._runs.active:
            raise JobActive(f"It is {job.state}.", job=job_id)
        return job

    async def ended_before(self, moment: str, *, purged: bool) -> list[Job]:
        """Jobs that ended before `moment` (UTC); with `purged`, also those already purged."""
        return await self._journal.read(Rows.ended_before, moment, purged=purged)


def _damaged(job: Job, how: str) -> BadResult:
    return BadResult(
        f"The result on the server's disk is not what the run wrote: {how}.",
        "POST to the job's /rerun to run it again.",
        job=job.id,
    )
