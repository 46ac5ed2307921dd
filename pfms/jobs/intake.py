"""What comes in: a volume, or an old job to be run again, becomes a job on record, or nothing."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from pfms.aio import in_thread, to_the_end
from pfms.clock import iso, utc_now
from pfms.errors import (
    Gone,
    IdempotencyMismatch,
    NoDevice,
    NotReady,
    QueueFull,
)
from pfms.executors.base import Executor
from pfms.jobs.holds import Holds
from pfms.jobs.job import Job, ModelUsed, PluginUsed, VolumeSent
from pfms.jobs.journal import Journal
from pfms.jobs.queue import JobQueue
from pfms.jobs.runs import Runs
from pfms.models.store import ModelRecord, ModelStore, valid_model_id
from pfms.plugin import PLUGIN
from pfms.plugin.types import Resultant
from pfms.settings import Settings
from pfms.storage.disk import reporting_full_disk
from pfms.storage.files import link_or_copy
from pfms.storage.removal import discard
from pfms.storage.room import Room
from pfms.storage.upload import Upload, UploadWriter
from pfms.storage.workspace import JobTree, Workspace
from pfms.volumes import admit


@dataclass(frozen=True)
class InferenceRequest:
    """What a call asks to be made of its volume.

    Attributes:
        model_id: The weights.
        resultant: What is to come back.
        held: A plain blocking call waits for it; the job is cancelled when its client goes away.
        key: The call's Idempotency-Key.
    """

    model_id: str
    resultant: Resultant
    held: bool = False
    key: str | None = None


class Place:
    """A place in the queue, kept for a job that is still being received."""

    def __init__(self, queue: JobQueue | None) -> None:
        self._queue = queue  # None: there is nothing to give back (any more)

    def release(self) -> None:
        """Let go of it: the job is in the queue now, or will never be."""
        if self._queue is not None:
            self._queue.unreserve()
            self._queue = None


class Intake:
    """The way in."""

    def __init__(
        self,
        settings: Settings,
        workspace: Workspace,
        journal: Journal,
        runs: Runs,
        models: ModelStore,
        executor: Executor,
        holds: Holds,
    ) -> None:
        self._settings = settings
        self._workspace = workspace
        self._journal = journal
        self._records = journal.records
        self._runs = runs
        self._models = models
        self._executor = executor
        self._holds = holds
        self.room = Room(workspace.free_bytes, settings.min_free_bytes)
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._admission_slots = asyncio.Semaphore(os.cpu_count() or 1)  # each keeps a core busy
        self._limits = admit.VolumeLimits(
            max_volume_bytes=settings.max_volume_bytes, max_grid_voxels=settings.max_grid_voxels
        )

    # --- before the body is read -----------------------------------------------------------

    @asynccontextmanager
    async def receiving(self, size: int | None) -> AsyncIterator[UploadWriter]:
        """Take the next upload, under a temporary name; nothing of it is left that is not moved.

        Args:
            size: Bytes that the request announces: so much room is kept for it. None where it
                does not say.

        Raises:
            NotReady: The server drains.
            DiskFull: There is not so much room.
        """
        self._check_not_draining()
        async with self.room.reserve(size or 0) as reservation:
            path, limit = self._workspace.new_upload(), self._settings.max_upload_bytes
            async with UploadWriter(path, limit, reservation) as writer:
                yield writer

    @asynccontextmanager
    async def place(
        self, *, model_id: str | None = None, key: str | None = None
    ) -> AsyncIterator[Place]:
        """Keep a place in the queue while a volume is received, so that the limit is exact.

        A repeat by a `key` that stands for a job needs none: it gets that job.

        Raises:
            NotReady: The server drains.
            DiskFull: Too little room is left.
            ModelNotFound: `model_id` is given, and there is no such model.
            NoDevice: There is nothing to run on.
            QueueFull: Too many jobs wait.
        """
        self._check_not_draining()
        if key is not None and await self._journal.call(self._records.by_key, key) is not None:
            yield Place(None)
            return
        async with self.room.reserve():
            pass  # only to look whether there is room at all
        if model_id is not None:
            await asyncio.to_thread(self._models.get, valid_model_id(model_id))
        await self._check_device()
        queue = self._runs.queue
        if not queue.reserve(self._settings.queue_limit):
            raise QueueFull(
                f"{len(queue)} jobs wait already.", retry_after=self._runs.seconds_until_room()
            )
        place = Place(queue)
        try:
            yield place
        finally:
            place.release()

    def _check_not_draining(self) -> None:
        if self._runs.draining:
            raise NotReady("The server is stopping.", retry_after=self._settings.drain_seconds)

    async def _check_device(self) -> None:
        chosen = self._runs.queue.devices
        if not set(chosen) & set(await asyncio.to_thread(self._executor.devices)):
            raise NoDevice(f"Runs are to go to {', '.join(chosen)}, which is not there.")

    # --- the body is there -----------------------------------------------------------------

    async def submit(self, upload: Upload, request: InferenceRequest, place: Place) -> Job:
        """Look at a volume and make it a job, or find the job that its key stands for.

        Raises:
            RequestError: The volume cannot be segmented, or the key stands for something else.
            NotNow: The disk is full.
        """
        if request.key is None:
            return await self._new_job(upload, request, None, place)
        parts = [upload.sha256, request.model_id, request.resultant]
        fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        async with self._key_locks.setdefault(request.key, asyncio.Lock()):
            known = await self._journal.call(self._records.by_key, request.key)
            if known is None:
                return await self._new_job(upload, request, fingerprint, place)
        if known.fingerprint != fingerprint:
            raise IdempotencyMismatch(
                "This Idempotency-Key came before with another volume, model or resultant.",
                job=known.id,
            )
        return known

    async def _new_job(
        self, upload: Upload, request: InferenceRequest, fingerprint: str | None, place: Place
    ) -> Job:
        created = utc_now()
        async with self._unpublished_tree() as tree, self._admission_slots:
            model, facts = await in_thread(self._fill_tree, upload, request, tree)
            job = Job(
                id=self._workspace.new_job_id(created),
                created_at=iso(created),
                plugin=PluginUsed(name=PLUGIN.name),
                model=ModelUsed(modelID=request.model_id, sha256=model.sha256),
                volume=VolumeSent(
                    size=upload.size,
                    sha256=upload.sha256,
                    shape=facts.shape,
                    spacing=facts.spacing,
                    orientation=facts.orientation,
                    dtype=facts.dtype,
                    minimum=facts.minimum,
                    maximum=facts.maximum,
                    warnings=list(facts.warnings),
                ),
                resultant=request.resultant,
                held=request.held,
                idempotency_key=request.key,
                fingerprint=fingerprint,
                warnings=list(facts.warnings),
            )
            return await self._publish(tree, job, place)

    def _fill_tree(
        self, upload: Upload, request: InferenceRequest, tree: JobTree
    ) -> tuple[ModelRecord, admit.VolumeFacts]:
        """Put weights and volume into a job's folder, if the plugin can use them. It blocks."""
        tree.lay_out()
        model = self._models.link_into(request.model_id, tree.model)
        facts = admit.admit_volume(upload.path, tree.volume, self._limits)
        PLUGIN.check_can_make(request.resultant, facts.shape)
        return model, facts

    async def rerun(self, old: Job, resultant: Resultant | None) -> Job:
        """A new job with the volume, the weights and the options of an ended one.

        Raises:
            Gone: Its voxels were purged.
            UnsupportedNifti: `resultant` cannot be made of this volume.
            NotNow: The queue or the disk is full, or there is nothing to run on.
        """
        wanted = resultant or old.resultant
        PLUGIN.check_can_make(wanted, old.volume.shape)
        created = utc_now()
        async with self.place() as place, self._unpublished_tree() as tree:
            async with self._holds.reading(old.id):
                await in_thread(_link_inputs, self._workspace.job(old.id), tree)
            job = Job(
                id=self._workspace.new_job_id(created),
                created_at=iso(created),
                plugin=PluginUsed(name=PLUGIN.name),
                model=old.model,
                volume=old.volume,
                resultant=wanted,
                rerun_of=old.id,
                warnings=old.volume.warnings,
            )
            return await self._publish(tree, job, place)

    @asynccontextmanager
    async def _unpublished_tree(self) -> AsyncIterator[JobTree]:
        """A job's folder to be filled, beside the others; nothing is left of one not published."""
        tree = JobTree(self._workspace.new_upload())
        with reporting_full_disk():
            try:
                yield tree
            except BaseException:
                await in_thread(discard, tree.root)
                raise

    async def _publish(self, tree: JobTree, job: Job, place: Place) -> Job:
        """Put a job's folder into its place whole, then its row; then it waits in the queue."""
        await in_thread(self._records.write_file, tree, job)
        await in_thread(self._workspace.publish, tree, job.id)
        try:
            await to_the_end(self._journal.call(self._records.write_row, job))
        except BaseException:
            await in_thread(self._workspace.remove_job, job.id)
            raise
        place.release()  # in the same step as it enters the queue, so that none is counted twice
        self._runs.add(job)
        return job


def _link_inputs(source: JobTree, tree: JobTree) -> None:
    """Give a job the volume and the weights of another one. It blocks."""
    tree.lay_out()
    try:
        for file, target in ((source.volume, tree.volume), (source.model, tree.model)):
            link_or_copy(file, target)
    except FileNotFoundError:
        raise Gone("The volume of this job was removed.", job=source.root.name) from None
