"""The use case, in words a reader can follow: models in, volumes in, segmentations out.

`intake` makes jobs, `runs` runs them, `archive` knows them; here they are built and kept alive.
"""

import asyncio
import logging

from pfms.errors import DiskFull, InvalidParameter, StartError
from pfms.executors import devices
from pfms.executors.base import Executor
from pfms.jobs.archive import Archive
from pfms.jobs.housekeeping import Housekeeping
from pfms.jobs.intake import Intake
from pfms.jobs.job import Job
from pfms.jobs.queue import JobQueue
from pfms.jobs.recovery import recover
from pfms.jobs.runs import Runs
from pfms.jobs.table import Records
from pfms.models.store import ModelRecord, ModelStore
from pfms.plugin.command import PluginCommand
from pfms.settings import Settings
from pfms.storage.disk import full_disk_is_told
from pfms.storage.upload import Upload, UploadWriter
from pfms.storage.workspace import Workspace

log = logging.getLogger(__name__)

_WHY_NOT_YET = {
    "warming": "the plugin is being started; jobs are accepted and wait",
    "plugin-broken": "the plugin does not start: the server's log and `pfms doctor` say why",
}


class Service:
    """Everything that the routes can ask for."""

    def __init__(self, settings: Settings, command: PluginCommand, executor: Executor) -> None:
        """Build it; nothing is touched before `start`.

        Raises:
            StartError: A device of the settings is not there.
        """
        self.settings = settings
        self._executor = executor
        self._there = devices.available()
        chosen = devices.choose(settings.devices, self._there)
        self._workspace = Workspace(settings.workspace)
        self._records = Records(self._workspace)
        self.models = ModelStore(self._workspace.models, command.interpreter)
        self.runs = Runs(
            settings,
            self._workspace,
            self._records,
            executor,
            command,
            JobQueue(chosen, settings.jobs_per_device),
        )
        self.intake = Intake(settings, self._workspace, self._records, self.runs, self.models)
        self.archive = Archive(settings, self._workspace, self._records, self.runs)
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
            with full_disk_is_told():
                await asyncio.to_thread(self._workspace.open)
                await self.runs.in_journal(self._records.open)
                await asyncio.to_thread(self.models.recover)
                await self._take_up_devices()
                await recover(
                    self._workspace,
                    self._records,
                    self.runs,
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
        await self.runs.drain(self.settings.drain_seconds)

    def hasten(self) -> None:
        """End the patience of a drain."""
        self.runs.hasten()

    async def stop(self) -> None:
        """Put back what still runs, end every process and give the workspace back."""
        await self.runs.drain(0)
        await self._housekeeping.stop()
        if self._executor_starts is not None:
            self._executor_starts.cancel()
            await asyncio.wait({self._executor_starts})
        await self._executor.close()
        await self.runs.in_journal(self._records.close)
        await self.runs.close()
        await asyncio.to_thread(self._workspace.close)

    async def missing(self) -> dict[str, str]:
        """What keeps the service from being ready, by name; empty when it is."""
        missing = {}
        if self.runs.draining:
            missing["draining"] = "the server is stopping and takes nothing new"
        if (name := self._executor.missing()) is not None:
            missing[name] = _WHY_NOT_YET[name]
        if (trouble := await asyncio.to_thread(self._workspace.trouble)) is not None:
            missing["workspace"] = trouble
        elif await asyncio.to_thread(self.intake.disk_is_full):
            missing["disk-full"] = "less than PFMS_MIN_FREE_BYTES is free"
        there = await asyncio.to_thread(devices.available)
        if not set(self.devices) & set(there):
            missing["no-device"] = f"there is none of {', '.join(self.devices)}"
        return missing

    # --- uploads and models ----------------------------------------------------------------

    def writer(self) -> UploadWriter:
        """Takes the next upload, under a temporary name."""
        return UploadWriter(self._workspace.new_upload(), self.settings.max_upload_bytes)

    async def add_model(self, model_id: str, upload: Upload) -> ModelRecord:
        """Check an upload of weights and store it.

        Raises:
            NotAModel: The plugin cannot use it.
        """
        with full_disk_is_told():
            return await self.models.admit(model_id, upload.path, upload.sha256)

    # --- jobs ------------------------------------------------------------------------------

    async def wait(self, job_id: str, seconds: float | None = None) -> Job:
        """The job when it has ended, or as it is after `seconds`.

        Raises:
            Interrupted: The server stops; the job is queued.
            JobNotFound: There is none.
        """
        active = self.runs.active.get(job_id)
        if active is not None:
            await asyncio.wait({active.done}, timeout=seconds)
            if active.done.done():
                return active.done.result()
        return await self.archive.job(job_id)

    async def cancel(self, job_id: str) -> Job:
        """Ask for the end of a job; an ended one stays as it is.

        Raises:
            JobNotFound: There is none.
            DiskFull: There is no room to record it; it ends all the same.
        """
        job = await self.archive.job(job_id)
        return await self.runs.cancel(job_id) or await self.archive.job(job.id)

    async def client_went_away(self, job_id: str) -> None:
        """Nobody waits for this held job any more."""
        await self.runs.cancel(job_id, "client-gone")

    # --- devices ---------------------------------------------------------------------------

    @property
    def devices(self) -> tuple[str, ...]:
        """Where runs go."""
        return self.runs.queue.devices

    async def set_devices(self, wanted: str) -> tuple[str, ...]:
        """Let runs go elsewhere from now on, across restarts too; `auto` is the setting again.

        Raises:
            InvalidParameter: A device is not there.
        """
        there = await asyncio.to_thread(devices.available)
        try:
            chosen = devices.choose(self.settings.devices if wanted == "auto" else wanted, there)
        except StartError as error:
            raise InvalidParameter(error.detail, "Use one of these, or auto.") from None
        async with self._choosing:
            await self._keep_devices(None if wanted == "auto" else ",".join(chosen))
            self.runs.queue.set_devices(chosen)
        self.runs.dispatch()
        return chosen

    async def _take_up_devices(self) -> None:
        """Go on with the devices that a call chose before the restart, if they are still there."""
        kept = (await asyncio.to_thread(self._workspace.read_state)).get("devices")
        if not isinstance(kept, str):
            return
        try:
            self.runs.queue.set_devices(devices.choose(kept, self._there))
        except StartError as error:
            log.warning("%s Back to PFMS_DEVICES=%s.", error.detail, self.settings.devices)
            await self._keep_devices(None)

    async def _keep_devices(self, names: str | None) -> None:
        state = await asyncio.to_thread(self._workspace.read_state)
        with full_disk_is_told():
            await asyncio.to_thread(self._workspace.write_state, {**state, "devices": names})
