"""Turns a volume, or an earlier job to be rerun, into a job on record, or leaves nothing behind."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from pfms import trace
from pfms.access.caller import Caller
from pfms.aio import in_thread, to_the_end
from pfms.clock import iso, utc_now
from pfms.errors import (
    Gone,
    IdempotencyMismatch,
    NoDevice,
    NotReady,
    RequestError,
)
from pfms.executors.base import Executor
from pfms.jobs.allowances import Allowances, Place
from pfms.jobs.holds import Holds
from pfms.jobs.job import Job, ModelUsed, PluginUsed, VolumeSent
from pfms.jobs.journal import Journal
from pfms.jobs.rows import Rows
from pfms.jobs.runs import Runs
from pfms.metrics import Metrics, UploadKind
from pfms.models.record import ModelRecord, valid_model_id
from pfms.models.store import ModelStore
from pfms.plugin import PLUGIN
from pfms.plugin.types import Resultant
from pfms.settings import Settings
from pfms.spans import Spans
from pfms.storage.disk import reporting_full_disk
from pfms.storage.removal import discard
from pfms.storage.room import Room
from pfms.storage.upload import Upload, UploadWriter
from pfms.storage.workspace import JobTree, Workspace
from pfms.volumes import admit
from pfms.volumes.memory import RunMemory

_OwnedKey = tuple[str | None, str]


@dataclass(frozen=True)
class InferenceRequest:
    """What a call asks for, besides its volume.

    Attributes:
        model_id: The weights to use.
        resultant: What to return.
        held: A plain blocking call waits for the job, which is cancelled if the client goes away.
        key: The call's Idempotency-Key.
        owner: Who calls; keys of different owners have nothing to do with each other.
    """

    model_id: str
    resultant: Resultant
    held: bool = False
    key: str | None = None
    owner: str | None = None


class Intake:
    """Takes in volumes and makes jobs of them."""

    def __init__(
        self,
        settings: Settings,
        workspace: Workspace,
        journal: Journal,
        runs: Runs,
        models: ModelStore,
        executor: Executor,
        holds: Holds,
        memory: RunMemory,
        metrics: Metrics,
        spans: Spans,
    ) -> None:
        self._settings = settings
        self._workspace = workspace
        self._journal = journal
        self._records = journal.records
        self._runs = runs
        self._models = models
        self._executor = executor
        self._holds = holds
        self._memory = memory
        self._metrics = metrics
        self._spans = spans
        self.room = Room(workspace.free_bytes, settings.min_free_bytes)
        self._key_locks: WeakValueDictionary[_OwnedKey, asyncio.Lock] = WeakValueDictionary()
        self._admission_slots = asyncio.Semaphore(os.cpu_count() or 1)  # each keeps a core busy
        self._allowances = Allowances(settings, journal, runs)
        self._limits = admit.VolumeLimits(
            max_volume_bytes=settings.max_volume_bytes,
            max_grid_voxels=settings.max_grid_voxels,
            memory=memory,
        )

    # --- before the body is read -----------------------------------------------------------

    @asynccontextmanager
    async def receiving(
        self, kind: UploadKind, size: int | None, caller: Caller
    ) -> AsyncIterator[UploadWriter]:
        """Receive an upload under a temporary name; it is removed afterwards unless it was moved.

        Args:
            kind: What is received, for the metrics.
            size: Bytes that the request announces, for which room is reserved. None if it does not
                announce any.
            caller: Whose upload it is.

        Raises:
            NotReady: The server is draining.
            TooManyRequests: The caller has as many uploads as it may have.
            DiskFull: There is not enough room.
        """
        self._check_not_draining()
        with self._allowances.uploading(caller):
            async with self.room.reserve(size or 0) as reservation:
                path, limit = self._workspace.new_upload(), self._settings.max_upload_bytes
                async with UploadWriter(path, limit, reservation) as writer:
                    try:
                        yield writer
                    finally:
                        self._metrics.uploaded(kind, writer.size)

    @asynccontextmanager
    async def place(
        self,
        caller: Caller,
        size: int | None,
        *,
        model_id: str | None = None,
        key: str | None = None,
    ) -> AsyncIterator[Place]:
        """Reserve a place while a volume of `size` bytes is received, so that limits are exact.

        A repeated request, whose `key` already belongs to a job of the caller, gets that job and
        needs no place, unless the job gives up its key meanwhile: `submit` looks again.

        Raises:
            NotReady: The server is draining.
            DiskFull: Too little room is left.
            ModelNotFound: `model_id` is given, and there is no such model.
            NoDevice: None of the chosen devices is available.
            TooManyRequests: The caller holds as much as it may.
            QueueFull: Too many jobs are waiting.
        """
        self._check_not_draining()
        place = Place(self._allowances, self._runs, self._settings.queue_limit, caller)
        try:
            if key is None or not await self._journal.read(Rows.by_key, key, caller.name):
                await self._check_can_run(model_id)
                await place.reserve(size or 1)  # if it is unknown, only what is already too much
            yield place
        finally:
            place.release()

    async def _check_can_run(self, model_id: str | None) -> None:
        async with self.room.reserve():
            pass  # only to see whether there is any room at all
        if model_id is not None:
            await asyncio.to_thread(self._models.get, valid_model_id(model_id))
        await self._check_device()

    def _check_not_draining(self) -> None:
        if self._runs.draining:
            raise NotReady("The server is stopping.", retry_after=self._settings.drain_seconds)

    async def _check_device(self) -> None:
        chosen = self._runs.queue.devices
        there = await asyncio.to_thread(self._executor.devices)
        # A cluster that has none now may have some later: jobs wait for it.
        if there and not set(chosen) & set(there):
            raise NoDevice(f"None of the chosen devices is available: {', '.join(chosen)}.")

    # --- after the body was read -----------------------------------------------------------

    async def submit(self, upload: Upload, request: InferenceRequest, place: Place) -> Job:
        """Check a volume and make a job of it, or find the job that its key belongs to.

        Raises:
            RequestError: The volume cannot be segmented, or the key belongs to another request.
            NotNow: The disk is full.
        """
        if request.key is None:
            return await self._new_job(upload, request, None, place)
        parts = [upload.sha256, request.model_id, request.resultant]
        fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        async with self._key_locks.setdefault((request.owner, request.key), asyncio.Lock()):
            known = await self._journal.read(Rows.by_key, request.key, request.owner)
            if known is None:
                return await self._new_job(upload, request, fingerprint, place)
        if known.fingerprint != fingerprint:
            raise IdempotencyMismatch(
                "This Idempotency-Key was used before with another volume, model or resultant.",
                job=known.id,
            )
        return known

    async def _new_job(
        self, upload: Upload, request: InferenceRequest, fingerprint: str | None, place: Place
    ) -> Job:
        await place.reserve(upload.size)
        created = utc_now()
        async with self._unpublished_tree() as tree, self._admission_slots:
            try:
                with self._spans.span("look"):
                    model, facts = await in_thread(self._fill_tree, upload, request, tree)
            except RequestError as error:
                self._metrics.not_admitted("volume", error.code)
                raise
            job = Job(
                id=self._workspace.new_job_id(created),
                traceparent=trace.traceparent.get(),
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
                    scaled=facts.scaled,
                    minimum=facts.minimum,
                    maximum=facts.maximum,
                    warnings=list(facts.warnings),
                ),
                resultant=request.resultant,
                estimated_memory_bytes=facts.memory,
                held=request.held,
                owner=request.owner,
                idempotency_key=request.key,
                fingerprint=fingerprint,
                warnings=list(facts.warnings),
            )
            return await self._publish(tree, job, place)

    def _fill_tree(
        self, upload: Upload, request: InferenceRequest, tree: JobTree
    ) -> tuple[ModelRecord, admit.VolumeFacts]:
        """Put weights and volume into a job's folder, if the plugin can use them. Blocking."""
        tree.lay_out()
        model = self._models.link_into(request.model_id, tree.model)
        facts = admit.admit_volume(upload.path, tree.volume, self._limits)
        PLUGIN.check_can_make(request.resultant, facts.shape)
        return model, facts

    async def rerun(self, old: Job, resultant: Resultant | None, caller: Caller) -> Job:
        """Make a new job of `caller` with the volume, weights and options of an ended one.

        Raises:
            Gone: Its voxels were purged.
            UnsupportedNifti: `resultant` cannot be made from this volume.
            NoMemory: Its run would need more memory than runs may have.
            NotNow: The queue or the disk is full, no chosen device is available, or the caller
                holds as much as it may.
        """
        wanted = resultant or old.resultant
        PLUGIN.check_can_make(wanted, old.volume.shape)
        volume = old.volume
        memory = self._memory.needed(volume.shape, volume.spacing, volume.dtype, volume.scaled)
        self._memory.check(memory)
        created = utc_now()
        async with self.place(caller, old.volume.size) as place, self._unpublished_tree() as tree:
            async with self._holds.reading(old.id):
                source = self._workspace.job(old.id)
                async with self.room.reserve(await asyncio.to_thread(_size_of_volume, source)):
                    await in_thread(_copy_inputs, source, tree)
            job = Job(
                id=self._workspace.new_job_id(created),
                traceparent=trace.traceparent.get(),
                created_at=iso(created),
                plugin=PluginUsed(name=PLUGIN.name),
                model=old.model,
                volume=old.volume,
                resultant=wanted,
                estimated_memory_bytes=memory,
                rerun_of=old.id,
                owner=caller.name,
                warnings=old.volume.warnings,
            )
            return await self._publish(tree, job, place)

    @asynccontextmanager
    async def _unpublished_tree(self) -> AsyncIterator[JobTree]:
        """A job's folder to fill, under `uploads/`; it is removed if an error is raised."""
        tree = JobTree(self._workspace.new_upload())
        with reporting_full_disk():
            try:
                yield tree
            except BaseException:
                await in_thread(discard, tree.root)
                raise

    async def _publish(self, tree: JobTree, job: Job, place: Place) -> Job:
        """Move a finished folder into place, write its row, then add the job to the queue."""
        await in_thread(self._records.write_file, tree, job, durable=False)  # `publish` syncs all
        try:
            await in_thread(self._workspace.publish, tree, job.id)
            await to_the_end(self._journal.call(self._records.write_row, job))
        except BaseException:
            await in_thread(self._workspace.remove_job, job.id)
            raise
        place.release()  # without an await before the next line, so that it is never counted twice
        self._metrics.accepted()
        self._runs.add(job)
        return job


def _size_of_volume(source: JobTree) -> int:
    with _needing_inputs(source), source.open(source.volume) as volume:
        return os.fstat(volume.fileno()).st_size


def _copy_inputs(source: JobTree, tree: JobTree) -> None:
    """Give a job the volume and weights of another one. Blocking.

    The volume is copied: a plugin that writes into its input must not change another job's.
    """
    tree.lay_out()
    with _needing_inputs(source):
        source.copy(source.volume, tree.volume)
        source.link_or_copy(source.model, tree.model)


@contextmanager
def _needing_inputs(source: JobTree) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Gone("The volume of this job was removed.", job=source.root.name) from None
