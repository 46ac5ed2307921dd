"""What comes in: a volume, or an old job to be run again, becomes a job on record, or nothing."""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from pfms.clock import iso, utc_now
from pfms.errors import DiskFull, Gone, IdempotencyMismatch, NoDevice, NotReady, QueueFull
from pfms.jobs.job import Job, ModelUsed, Resultant, VolumeSent
from pfms.jobs.runs import Runs
from pfms.jobs.table import Records
from pfms.models.store import ModelStore, valid_model_id
from pfms.plugin import spleenseg
from pfms.settings import Settings
from pfms.storage.disk import full_disk_is_told
from pfms.storage.files import discard, link_or_copy
from pfms.storage.upload import Upload
from pfms.storage.workspace import JobTree, Workspace
from pfms.volumes import admit


@dataclass(frozen=True)
class Wish:
    """What a request wants made of its volume.

    `held`: a plain blocking call waits for it and takes it along when its client goes away.
    `key`: its Idempotency-Key.
    """

    model_id: str
    resultant: Resultant
    held: bool = False
    key: str | None = None


class Intake:
    """The way in."""

    def __init__(
        self,
        settings: Settings,
        workspace: Workspace,
        records: Records,
        runs: Runs,
        models: ModelStore,
    ) -> None:
        self._settings = settings
        self._workspace = workspace
        self._records = records
        self._runs = runs
        self._models = models
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._looks = asyncio.Semaphore(os.cpu_count() or 1)  # each keeps a core busy
        self._limits = admit.VolumeLimits(
            max_volume_bytes=settings.max_volume_bytes, max_grid_voxels=settings.max_grid_voxels
        )

    async def check_can_take(self) -> None:
        """Whether an upload may come; asked before its body is read.

        Raises:
            NotReady: The server drains.
            DiskFull: Too little room is left.
        """
        if self._runs.draining:
            raise NotReady("The server is stopping.", retry_after=self._settings.drain_seconds)
        if await asyncio.to_thread(self.disk_is_full):
            raise DiskFull("Less than PFMS_MIN_FREE_BYTES is free on the server's disk.")

    def disk_is_full(self) -> bool:
        """Whether less than PFMS_MIN_FREE_BYTES is free."""
        return self._workspace.free_bytes() < self._settings.min_free_bytes

    async def check_can_queue(self, model_id: str, key: str | None = None) -> None:
        """Whether a volume for this model may come; asked before its body is read.

        A repeat by a `key` that stands for a job may always: it gets that job, and needs no room.

        Raises:
            NotReady: The server drains.
            DiskFull: Too little room is left.
            ModelNotFound: There is no such model.
            QueueFull: Too many jobs wait.
            NoDevice: There is nothing to run on.
        """
        if key is not None and not self._runs.draining:
            known = await self._runs.in_journal(self._records.by_key, key)
            if known is not None:
                return
        await self.check_can_take()
        await asyncio.to_thread(self._models.get, valid_model_id(model_id))
        if not self._runs.queue.slot_count:
            raise NoDevice
        self._check_room()

    def _check_room(self) -> None:
        if len(self._runs.queue) >= self._settings.queue_limit:
            raise QueueFull(
                f"{len(self._runs.queue)} jobs wait already.",
                retry_after=self._runs.seconds_until_room(),
            )

    async def submit(self, upload: Upload, wish: Wish) -> Job:
        """Look at a volume and make it a job, or find the job that its key stands for.

        Raises:
            RequestError: The volume cannot be segmented, or the key stands for something else.
            NotNow: The queue or the disk is full.
        """
        if wish.key is None:
            return await self._submit(upload, wish)
        parts = [upload.sha256, wish.model_id, wish.resultant]
        fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        async with self._key_locks.setdefault(wish.key, asyncio.Lock()):
            known = await self._runs.in_journal(self._records.by_key, wish.key)
            if known is None:
                return await self._submit(upload, wish, fingerprint)
        if known.fingerprint != fingerprint:
            raise IdempotencyMismatch(
                "This Idempotency-Key came before with another volume, model or resultant.",
                job=known.id,
            )
        return known

    async def _submit(self, upload: Upload, wish: Wish, fingerprint: str | None = None) -> Job:
        self._check_room()

        def prepare(tree: JobTree, job_id: str, created_at: str) -> Job:
            model = self._models.link_into(wish.model_id, tree.model)
            facts = admit.admit_volume(upload.path, tree.volume, self._limits)
            _check_makes(wish.resultant, facts.shape[2])
            return Job(
                id=job_id,
                created_at=created_at,
                model=ModelUsed(modelID=wish.model_id, sha256=model.sha256),
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
                resultant=wish.resultant,
                held=wish.held,
                idempotency_key=wish.key,
                fingerprint=fingerprint,
                warnings=list(facts.warnings),
            )

        return await self._publish(prepare)

    async def rerun(self, old: Job, resultant: Resultant | None) -> Job:
        """A new job with the volume, the weights and the options of an ended one.

        Raises:
            Gone: Its voxels were purged.
            UnsupportedNifti: `resultant` cannot be made of this volume.
            NotNow: The queue or the disk is full.
        """
        self._check_room()
        source = self._workspace.job(old.id)

        def prepare(tree: JobTree, job_id: str, created_at: str) -> Job:
            _check_makes(resultant or old.resultant, old.volume.shape[2])
            try:
                for file, target in ((source.volume, tree.volume), (source.model, tree.model)):
                    link_or_copy(file, target)
            except FileNotFoundError:
                raise Gone("The volume of this job was removed.", job=old.id) from None
            return Job(
                id=job_id,
                created_at=created_at,
                model=old.model,
                volume=old.volume,
                resultant=resultant or old.resultant,
                rerun_of=old.id,
                warnings=old.volume.warnings,
            )

        return await self._publish(prepare)

    async def _publish(self, prepare: Callable[[JobTree, str, str], Job]) -> Job:
        """Build a job's folder aside, put it into place whole, then its row, then queue it."""
        aside = JobTree(self._workspace.new_upload())

        def build() -> Job:
            created = utc_now()
            aside.lay_out()
            job = prepare(aside, self._workspace.new_job_id(created), iso(created))
            self._records.write_file(aside, job)
            self._workspace.publish(aside, job.id)
            return job

        with full_disk_is_told():
            try:
                async with self._looks:
                    job = await asyncio.to_thread(build)
            except BaseException:
                await asyncio.to_thread(discard, aside.root)
                raise
            try:
                await self._runs.in_journal(self._records.write_row, job)
            except BaseException:
                await asyncio.to_thread(self._workspace.remove_job, job.id)
                raise
        self._runs.enter(job)
        return job


def _check_makes(resultant: Resultant, slices: int) -> None:
    if resultant == "logits" and slices < spleenseg.SLICES_FOR_PICTURE:
        raise spleenseg.no_logits(slices)
