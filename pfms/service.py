"""What the routes can ask for: models in, volumes in, segmentations out.

`intake` makes jobs, `runs` runs them, `archive` looks them up. This module builds these parts,
starts them and stops them.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import suppress

from pfms.access.audit import AuditLog
from pfms.errors import DiskFull, InvalidParameter, RequestError, StartError
from pfms.executors import devices
from pfms.executors.base import Executor
from pfms.executors.memory import memory_of_runs
from pfms.jobs.archive import Archive
from pfms.jobs.events import Event
from pfms.jobs.holds import Holds
from pfms.jobs.housekeeping import Housekeeping
from pfms.jobs.intake import Intake
from pfms.jobs.job import Job
from pfms.jobs.journal import Journal
from pfms.jobs.queue import JobQueue
from pfms.jobs.recovery import recover
from pfms.jobs.runs import Runs
from pfms.jobs.table import Records
from pfms.metrics import Metrics
from pfms.models.record import ModelRecord
from pfms.models.store import ModelStore
from pfms.plugin.command import PluginCommand
from pfms.settings import Settings
from pfms.spans import Spans
from pfms.storage.disk import reporting_full_disk
from pfms.storage.upload import Upload
from pfms.storage.workspace import Workspace
from pfms.volumes.memory import gibibytes

log = logging.getLogger(__name__)


class Service:
    """The service as the routes see it."""

    def __init__(
        self, settings: Settings, command: PluginCommand, executor: Executor, metrics: Metrics
    ) -> None:
        """Build the parts; the workspace is not touched before `start`.

        Raises:
            StartError: A device in the settings is not available.
        """
        self.settings = settings
        self.metrics = metrics
        self.audit = AuditLog(settings.audit_log)
        self.spans = Spans()
        self._executor = executor
        chosen = devices.choose(settings.devices, executor.devices())
        self._workspace = Workspace(settings.workspace)
        self._journal = Journal(Records(self._workspace))
        self.models = ModelStore(self._workspace.models, command.interpreter)
        self._memory = memory_of_runs(settings, executor.name)
        queue = JobQueue(chosen, settings.jobs_per_device, self._memory.together)
        self._runs = Runs(
            settings,
            self._workspace,
            self._journal,
            executor,
            command,
            queue,
            metrics,
            self.audit,
            self.spans,
        )
        holds = Holds()
        self.intake = Intake(
            settings,
            self._workspace,
            self._journal,
            self._runs,
            self.models,
            executor,
            holds,
            self._memory,
            metrics,
            self.spans,
        )
        self.archive = Archive(self._workspace, self._journal, self._runs, holds, self.intake.room)
        self._housekeeping = Housekeeping(
            self.archive, settings.keep_volumes_hours, settings.keep_records_days
        )
        self._executor_starts: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._choosing = asyncio.Lock()
        self._wanted = settings.devices

    async def start(self) -> None:
        """Lock the workspace, resume what an earlier server left, and begin.

        Raises:
            StartError: The workspace cannot be used.
        """
        try:
            with reporting_full_disk():
                await asyncio.to_thread(self._workspace.open)
                await asyncio.to_thread(self.audit.open)
                await self._journal.call(self._journal.records.open)
                await asyncio.to_thread(self.models.recover)
                await self._restore_devices()
                await recover(
                    self._workspace,
                    self._journal,
                    self._runs,
                    self._memory,
                    self.settings.max_attempts,
                )
        except BaseException as error:
            await asyncio.to_thread(self.audit.close)
            await asyncio.to_thread(self._workspace.close)
            if isinstance(error, DiskFull):
                raise StartError(
                    "The disk of the workspace is full.", "Make room there, then start again."
                ) from None
            raise
        memory = self.settings.max_run_memory
        together = self._memory.together
        log.info(
            "runs have the rights of this server's user, %s of memory together, "
            "and %s of memory for each process",
            gibibytes(together) if together else "no limit",
            f"{memory.human_readable()} (RLIMIT_DATA)" if memory else "no limit",
        )
        self._executor.watch_devices(self._follow_devices)
        # After `recover`, which ends every process that carries the workspace's mark.
        self._executor_starts = asyncio.create_task(self._executor.start())
        self._housekeeping.start()
        self._watch = asyncio.create_task(self.metrics.watch_loop())

    async def drain(self) -> None:
        """Accept nothing new; let running jobs end, or requeue them."""
        await self._runs.drain(self.settings.drain_seconds)

    def drain_now(self) -> None:
        """Cut a drain short."""
        self._runs.drain_now()

    async def stop(self) -> None:
        """Requeue what is still running, end every process and release the workspace."""
        await self._runs.drain(0)
        await self._housekeeping.stop()
        for task in (self._executor_starts, self._watch):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        await self._executor.close()
        await self._journal.close()
        await asyncio.to_thread(self.audit.close)
        await asyncio.to_thread(self._workspace.close)
        await asyncio.to_thread(self.spans.close)

    async def missing(self) -> dict[str, str]:
        """What keeps the service from being ready, by name; empty when it is ready."""
        missing = {}
        if self._runs.draining:
            missing["draining"] = "the server is stopping and accepts nothing new"
        if (missing_part := self._executor.missing()) is not None:
            missing[missing_part.name] = missing_part.description
        if (trouble := await asyncio.to_thread(self._workspace.trouble)) is not None:
            missing["workspace"] = trouble
        elif await self.intake.room.left() < 0:
            missing["disk-full"] = "less than PFMS_MIN_FREE_BYTES is free"
        if self.audit.trouble is not None:
            missing["audit-log"] = f"the audit log cannot be written: {self.audit.trouble}"
        there = await asyncio.to_thread(self._executor.devices)
        if there and not set(self.devices) & set(there):
            wanted = ", ".join(self.devices) or self._wanted
            missing["no-device"] = f"none of these is available: {wanted}"
        return missing

    async def measure(self) -> None:
        """Set the gauges to what is so now."""
        queue, metrics = self._runs.queue, self.metrics
        metrics.ready.set(not await self.missing())
        metrics.jobs.labels("queued").set(len(queue))
        metrics.jobs.labels("running").set(len(queue.running))
        metrics.queue_limit.set(self.settings.queue_limit)
        metrics.slots.set(queue.slot_count)
        metrics.slots_busy.set(len(queue.running))
        metrics.memory_limit.set(self._memory.together)
        metrics.memory_promised.set(queue.memory_promised)
        there = await asyncio.to_thread(self._executor.devices)
        metrics.slots_usable.set(queue.per_device * len(set(queue.devices) & set(there)))
        metrics.disk_kept_free.set(self.settings.min_free_bytes)
        try:
            metrics.disk_free.set(await asyncio.to_thread(self._workspace.free_bytes))
        except OSError:  # the workspace is gone
            metrics.disk_free.set(math.nan)

    def refused_on_the_wire(self, code: str, status: int, address: str | None) -> None:
        """Count and note a request that was no request to any route."""
        self.metrics.refused(code)
        self.audit.write("refused", address=address, status=status, code=code)

    # --- models ----------------------------------------------------------------------------

    async def add_model(self, model_id: str, upload: Upload) -> ModelRecord:
        """Check an upload of weights and store it.

        Raises:
            NotAModel: The plugin cannot use it.
        """
        try:
            with reporting_full_disk(), self.spans.span("look"):
                return await self.models.admit(model_id, upload.path, upload.sha256)
        except RequestError as error:
            self.metrics.not_admitted("model", error.code)
            raise

    # --- jobs ------------------------------------------------------------------------------

    async def wait(self, job_id: str, seconds: float | None = None) -> Job:
        """The job when it has ended, or as it is after `seconds`.

        Raises:
            Interrupted: The server is stopping; the job is queued.
            JobNotFound: There is no such job.
        """
        active = self._runs.active.get(job_id)
        if active is not None:
            await asyncio.wait({active.done}, timeout=seconds)
            if active.done.done():
                return active.done.result()
        return await self.archive.job(job_id)

    async def events(self, job_id: str, after: int) -> AsyncIterator[Event]:
        """A job's events after number `after`, then new ones, without a gap or repetition.

        The stream ends after the job's last event, or when the server stops.
        """
        with self._runs.broadcast.listen(job_id) as listener:
            for event in await self.archive.events(job_id, after):
                yield event
                after = event.n
                if event.ends:
                    return
            if self._runs.draining or (job_id not in self._runs.active and listener.empty()):
                return
            while (coming := await listener.get()) is not None:
                if coming.n > after:
                    yield coming
                if coming.ends:
                    return

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job; one that has ended is left as it is.

        Raises:
            JobNotFound: There is no such job.
            DiskFull: There is no room to record the request. The job is cancelled all the same.
        """
        job = await self.archive.job(job_id)
        return await self._runs.cancel(job_id) or await self.archive.job(job.id)

    async def client_went_away(self, job_id: str) -> None:
        """Cancel a held job, for which nobody is waiting any longer."""
        await self._runs.cancel(job_id, "client-gone")

    # --- devices ---------------------------------------------------------------------------

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that runs use."""
        return self._runs.queue.devices

    async def set_devices(self, wanted: str) -> tuple[str, ...]:
        """Choose the devices for future runs, also after restarts; `auto` returns to the setting.

        Raises:
            InvalidParameter: A device is not available.
        """
        there = await asyncio.to_thread(self._executor.devices)
        try:
            chosen = devices.choose(self.settings.devices if wanted == "auto" else wanted, there)
        except StartError as error:
            raise InvalidParameter(error.detail, "Use one of these, or auto.") from None
        if not chosen:
            raise InvalidParameter("No device is available now.", "Try again later.")
        async with self._choosing:
            await self._save_devices(None if wanted == "auto" else ",".join(chosen))
            self._wanted = self.settings.devices if wanted == "auto" else wanted
            self._runs.queue.set_devices(chosen)
        self._runs.dispatch()
        return chosen

    async def _restore_devices(self) -> None:
        """Use the devices that a call chose before the restart, if they are still available."""
        kept = (await asyncio.to_thread(self._workspace.read_state)).get("devices")
        if not isinstance(kept, str):
            return
        there = await asyncio.to_thread(self._executor.devices)
        try:
            self._runs.queue.set_devices(devices.choose(kept, there))
            self._wanted = kept
        except StartError as error:
            log.warning("%s Using PFMS_DEVICES=%s.", error.detail, self.settings.devices)
            await self._save_devices(None)

    def _follow_devices(self) -> None:
        """Use the devices that the executor has now, as far as they are wanted."""
        there = self._executor.devices()
        chosen: list[str] = []
        for name in self._wanted.split(","):
            with suppress(StartError):  # it is not there now
                chosen += devices.choose(name, there)
        self._runs.queue.set_devices(tuple(dict.fromkeys(chosen)))
        self._runs.dispatch()

    async def _save_devices(self, names: str | None) -> None:
        state = await asyncio.to_thread(self._workspace.read_state)
        with reporting_full_disk():
            await asyncio.to_thread(self._workspace.write_state, {**state, "devices": names})
