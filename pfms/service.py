"""The use case, in words a reader can follow: models in, volumes in, segmentations out.

`intake` makes jobs, `runs` runs them, `archive` knows them; here they are built and kept alive.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

from pfms.errors import DiskFull, InvalidParameter, StartError
from pfms.executors import devices
from pfms.executors.base import Executor
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
from pfms.models.store import ModelRecord, ModelStore
from pfms.plugin.command import PluginCommand
from pfms.settings import Settings
from pfms.storage.disk import reporting_full_disk
from pfms.storage.upload import Upload
from pfms.storage.workspace import Workspace

log = logging.getLogger(__name__)


class Service:
    """Everything that the routes can ask for."""

    def __init__(self, settings: Settings, command: PluginCommand, executor: Executor) -> None:
        """Build it; nothing is touched before `start`.

        Raises:
            StartError: A device of the settings is not there.
        """
        self.settings = settings
        self._executor = executor
        chosen = devices.choose(settings.devices, executor.devices())
        self._workspace = Workspace(settings.workspace)
        self._journal = Journal(Records(self._workspace))
        self.models = ModelStore(self._workspace.models, command.interpreter)
        queue = JobQueue(chosen, settings.jobs_per_device)
        self._runs = Runs(settings, self._workspace, self._journal, executor, command, queue)
        holds = Holds()
        self.intake = Intake(
            settings, self._workspace, self._journal, self._runs, self.models, executor, holds
        )
        self.archive = Archive(self._workspace, self._journal, self._runs, holds, self.intake.room)
        self._housekeeping = Housekeeping(
            self.archive, settings.keep_volumes_hours, settings.keep_records_days
        )
        self._executor_starts: asyncio.Task[None] | None = None
        self._choosing = asyncio.Lock()

    async def start(self) -> None:
        """Take the workspace, take up what an earlier server left, and begin.

        Raises:
            StartError: The workspace cannot be used.
        """
        try:
            with reporting_full_disk():
                await asyncio.to_thread(self._workspace.open)
                await self._journal.call(self._journal.records.open)
                await asyncio.to_thread(self.models.recover)
                await self._restore_devices()
                await recover(
                    self._workspace,
                    self._journal,
                    self._runs,
                    self.settings.max_attempts,
                )
        except BaseException as error:
            await asyncio.to_thread(self._workspace.close)
            if isinstance(error, DiskFull):
                raise StartError(
                    "The disk of the workspace is full.", "Make room there, then start again."
                ) from None
            raise
        # After `recover`, which ends every process that carries the workspace's mark.
        self._executor_starts = asyncio.create_task(self._executor.start())
        self._housekeeping.start()

    async def drain(self) -> None:
        """Take nothing new; let what runs end, or put it back into the queue."""
        await self._runs.drain(self.settings.drain_seconds)

    def drain_now(self) -> None:
        """Wait no longer in a drain."""
        self._runs.drain_now()

    async def stop(self) -> None:
        """Put back what still runs, end every process and give the workspace back."""
        await self._runs.drain(0)
        await self._housekeeping.stop()
        if self._executor_starts is not None:
            self._executor_starts.cancel()
            await asyncio.wait({self._executor_starts})
        await self._executor.close()
        await self._journal.close()
        await asyncio.to_thread(self._workspace.close)

    async def missing(self) -> dict[str, str]:
        """What keeps the service from being ready, by name; empty when it is."""
        missing = {}
        if self._runs.draining:
            missing["draining"] = "the server is stopping and takes nothing new"
        if (missing_part := self._executor.missing()) is not None:
            missing[missing_part.name] = missing_part.words
        if (trouble := await asyncio.to_thread(self._workspace.trouble)) is not None:
            missing["workspace"] = trouble
        elif await self.intake.room.left() < 0:
            missing["disk-full"] = "less than PFMS_MIN_FREE_BYTES is free"
        there = await asyncio.to_thread(self._executor.devices)
        if not set(self.devices) & set(there):
            missing["no-device"] = f"there is none of {', '.join(self.devices)}"
        return missing

    # --- models ----------------------------------------------------------------------------

    async def add_model(self, model_id: str, upload: Upload) -> ModelRecord:
        """Check an upload of weights and store it.

        Raises:
            NotAModel: The plugin cannot use it.
        """
        with reporting_full_disk():
            return await self.models.admit(model_id, upload.path, upload.sha256)

    # --- jobs ------------------------------------------------------------------------------

    async def wait(self, job_id: str, seconds: float | None = None) -> Job:
        """The job when it has ended, or as it is after `seconds`.

        Raises:
            Interrupted: The server stops; the job is queued.
            JobNotFound: There is none.
        """
        active = self._runs.active.get(job_id)
        if active is not None:
            await asyncio.wait({active.done}, timeout=seconds)
            if active.done.done():
                return active.done.result()
        return await self.archive.job(job_id)

    async def events(self, job_id: str, after: int) -> AsyncIterator[Event]:
        """A job's events after number `after`, then those that come, without gap or repetition.

        They end with the event of its end, or when the server stops.
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
        """Ask for the end of a job; an ended one stays as it is.

        Raises:
            JobNotFound: There is none.
            DiskFull: There is no room to record it; it ends all the same.
        """
        job = await self.archive.job(job_id)
        return await self._runs.cancel(job_id) or await self.archive.job(job.id)

    async def client_went_away(self, job_id: str) -> None:
        """Nobody waits for this held job any more."""
        await self._runs.cancel(job_id, "client-gone")

    # --- devices ---------------------------------------------------------------------------

    @property
    def devices(self) -> tuple[str, ...]:
        """Where runs go."""
        return self._runs.queue.devices

    async def set_devices(self, wanted: str) -> tuple[str, ...]:
        """Let runs go elsewhere from now on, across restarts too; `auto` is the setting again.

        Raises:
            InvalidParameter: A device is not there.
        """
        there = await asyncio.to_thread(self._executor.devices)
        try:
            chosen = devices.choose(self.settings.devices if wanted == "auto" else wanted, there)
        except StartError as error:
            raise InvalidParameter(error.detail, "Use one of these, or auto.") from None
        async with self._choosing:
            await self._save_devices(None if wanted == "auto" else ",".join(chosen))
            self._runs.queue.set_devices(chosen)
        self._runs.dispatch()
        return chosen

    async def _restore_devices(self) -> None:
        """Go on with the devices that a call chose before the restart, if they are still there."""
        kept = (await asyncio.to_thread(self._workspace.read_state)).get("devices")
        if not isinstance(kept, str):
            return
        there = await asyncio.to_thread(self._executor.devices)
        try:
            self._runs.queue.set_devices(devices.choose(kept, there))
        except StartError as error:
            log.warning("%s Back to PFMS_DEVICES=%s.", error.detail, self.settings.devices)
            await self._save_devices(None)

    async def _save_devices(self, names: str | None) -> None:
        state = await asyncio.to_thread(self._workspace.read_state)
        with reporting_full_disk():
            await asyncio.to_thread(self._workspace.write_state, {**state, "devices": names})
