"""What happens to a job from its acceptance to its end: it waits, runs, is judged, is recorded.

Nothing outside changes a job's state. All of it is on the event loop; what blocks is in threads.
"""

import asyncio
import logging
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from sqlite3 import OperationalError
from typing import Any, Literal, TypeVar

from pfms.errors import Cancelled, DiskFull, Interrupted, PfmsError, PluginFailed
from pfms.executors.base import Executor
from pfms.jobs.attempt import Attempt
from pfms.jobs.estimates import estimate_starts
from pfms.jobs.events import Broadcast
from pfms.jobs.job import Cause, Job
from pfms.jobs.queue import JobQueue, Slot
from pfms.jobs.table import Records
from pfms.plugin.command import PluginCommand
from pfms.plugin.types import PluginExit, Progress
from pfms.settings import Settings
from pfms.storage.disk import full_disk_is_told
from pfms.storage.workspace import Workspace

log = logging.getLogger(__name__)
T = TypeVar("T")

_PROGRESS_SECONDS = 0.5  # at most this often is progress within a stage written down
_FIRST_RUN_SECONDS = 30.0  # what a run is taken to last before any has been seen
_RETRY_SECONDS = 1.0  # between attempts to record an end on a disk that is full
_HEARING_SECONDS = 0.2  # in which a stop that our processes have heard of is heard by us too

Stop = Literal["cancelled", "client-gone", "shutdown"]
_WHY_CANCELLED = {
    "cancelled": "It was cancelled by a call.",
    "client-gone": "The client of its blocking call went away.",
}


@dataclass
class Active:
    """A job that has not ended, and who works on it. `done` gets it when it has."""

    job: Job
    done: asyncio.Future[Job]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    progress: Progress | None = None
    told_at: float = 0.0
    started: float = 0.0
    plugin: asyncio.Task[PluginExit] | None = None
    stop: Stop | None = None


class Runs:
    """The jobs that have not ended."""

    def __init__(
        self,
        settings: Settings,
        workspace: Workspace,
        records: Records,
        executor: Executor,
        command: PluginCommand,
        queue: JobQueue,
    ) -> None:
        self._settings = settings
        self._workspace = workspace
        self._records = records
        self._executor = executor
        self._command = command
        self.queue = queue
        self.broadcast = Broadcast()
        self.active: dict[str, Active] = {}
        self.draining = False
        self._hurry = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._seconds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=5))
        self._journal = ThreadPoolExecutor(1, "journal")  # one writer, so writes keep their order

    async def in_journal(self, call: Callable[..., T], *args: Any, **named: Any) -> T:
        """Make a call of `records` in the journal's thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._journal, lambda: call(*args, **named))

    def remember_seconds(self, model_id: str, seconds: float) -> None:
        """Note how long a run took, for the estimates."""
        self._seconds[model_id].append(seconds)

    # --- coming in -------------------------------------------------------------------------

    def enter(self, job: Job) -> None:
        """Take in a job that is on record as queued."""
        self.active[job.id] = Active(job, asyncio.get_running_loop().create_future())
        self.queue.add(job.id)
        if self.draining:
            self._let_go([job.id])
        self.dispatch()

    def dispatch(self) -> None:
        """Give free slots to the jobs that wait."""
        while not self.draining and (taken := self.queue.take()) is not None:
            job_id, slot = taken
            task = asyncio.create_task(self._run(self.active[job_id], slot), name=job_id)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # --- running ---------------------------------------------------------------------------

    async def _run(self, active: Active, slot: Slot) -> None:
        job_id = active.job.id
        try:
            await self._attempt(active, slot)
        except PfmsError as error:
            await self._fail(active, error)
        except Exception:
            log.exception("job %s: pfms itself failed", job_id)
            await self._fail(active, PluginFailed("pfms could not run the plugin for this job."))
        self.queue.release(job_id)
        if not active.job.ended:  # put back
            self.queue.add(job_id, first=True)
            if self.draining:
                self._let_go([job_id])
        self.dispatch()

    async def _attempt(self, active: Active, slot: Slot) -> None:
        attempt = Attempt(
            self._settings, self._command, self._workspace, active.job, slot, self._executor.name
        )
        fields = await asyncio.to_thread(attempt.prepare)
        attempts = active.job.attempts + 1
        await self._change(active, "running", patient=False, attempts=attempts, **fields)
        active.started = time.monotonic()

        if active.stop is None:
            active.plugin = asyncio.create_task(
                self._executor.run(
                    attempt.run, lambda progress: self._on_progress(active, progress)
                )
            )
            await asyncio.wait({active.plugin})
        if active.plugin is None or active.plugin.cancelled():
            await self._stopped(active)
            return
        plugin_exit = active.plugin.result()
        if plugin_exit.ended_by == "executor":
            await asyncio.sleep(_HEARING_SECONDS)
            if self.draining or attempts < self._settings.max_attempts:
                log.warning("job %s: %s; it is run again", active.job.id, plugin_exit.message)
                await self._stopped(active)
                return

        self._on_progress(active, Progress("saving"))
        fields = {"exit_code": plugin_exit.code, "seconds": round(plugin_exit.seconds, 3)}
        try:
            segmentation, warnings = await asyncio.to_thread(attempt.judge, plugin_exit)
        except PfmsError as error:
            await self._fail(active, error, **fields)
            return
        if active.stop in _WHY_CANCELLED:
            await self._stopped(active)
            return
        warnings = [*active.job.warnings, *warnings]
        await self._change(
            active, "succeeded", segmentation=segmentation, warnings=warnings, **fields
        )
        self.remember_seconds(active.job.model.modelID, time.monotonic() - active.started)

    async def _stopped(self, active: Active) -> None:
        """The run was ended because someone asked, or by no fault of its own."""
        if active.stop in _WHY_CANCELLED:
            await self._cancelled(active)
        else:
            await self._requeue(active)

    async def _cancelled(self, active: Active) -> None:
        assert active.stop in _WHY_CANCELLED  # noqa: S101
        cause = Cause.of(Cancelled(_WHY_CANCELLED[active.stop]))
        await self._change(active, "cancelled", error=cause, idempotency_key=None)

    async def _fail(self, active: Active, error: PfmsError, **fields: Any) -> None:
        if isinstance(error, DiskFull):  # give back what the run took
            await asyncio.to_thread(self._workspace.job(active.job.id).clear_output)
        if isinstance(error, Interrupted):
            fields["idempotency_key"] = None
        await self._change(active, "failed", error=Cause.of(error), **fields)

    async def _requeue(self, active: Active) -> None:
        # Attempts are counted to give up a run that its server dies of: an orderly stop is none.
        attempts = active.job.attempts - self.draining
        await self._change(active, "queued", device=None, attempts=attempts)
        active.plugin = None
        active.progress = None

    # --- telling ---------------------------------------------------------------------------

    async def _change(
        self, active: Active, state: Any = None, *, patient: bool = True, **fields: Any
    ) -> Job:
        """Record a change, then let it be known. Until it is on record, it has not happened.

        Raises:
            DiskFull, OSError, OperationalError: It cannot be recorded, and it is not `patient`:
                else it waits until it can.
        """
        async with active.lock:
            old = active.job
            if old.ended:  # someone was quicker
                return old
            job = old.moved(state, **fields) if state else old.changed(**fields)
            while True:
                try:
                    with full_disk_is_told():
                        event = await self.in_journal(self._records.write, job)
                    break
                except (OSError, OperationalError, DiskFull) as error:
                    log.error("job %s: cannot record %s: %s", job.id, job.state, error)
                    if not patient:
                        raise
                    if self.draining:  # the next start finds it as it was, and goes on from there
                        return old
                    if job.error is not None:  # its record is worth more than what it wrote
                        await asyncio.to_thread(self._workspace.job(job.id).clear_output)
                    await asyncio.sleep(_RETRY_SECONDS)
            active.job = job
        self.broadcast.tell(job.id, event)
        if job.ended:
            self.active.pop(job.id, None)
            if not active.done.done():  # during a drain nobody waits for it any more
                active.done.set_result(job)
        return job

    def _on_progress(self, active: Active, progress: Progress) -> None:
        new_stage = active.progress is None or active.progress.stage != progress.stage
        active.progress = progress
        now = time.monotonic()
        if new_stage or now - active.told_at >= _PROGRESS_SECONDS:
            active.told_at = now
            task = asyncio.create_task(self._tell_progress(active.job.id, progress))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell_progress(self, job_id: str, progress: Progress) -> None:
        data = {"id": job_id, "state": "running", **progress.__dict__}
        try:
            event = await self.in_journal(self._records.progress, job_id, data)
        except OperationalError:  # the disk is full: a record of progress is no loss
            return
        if event is not None and job_id in self.active:
            self.broadcast.tell(job_id, event)

    # --- ending ----------------------------------------------------------------------------

    async def cancel(self, job_id: str, why: Stop = "cancelled") -> Job | None:
        """Ask for the end of a job; None if it has ended already.

        Raises:
            DiskFull: There is no room to record that it was asked for. It ends all the same.
        """
        active = self.active.get(job_id)
        if active is None:
            return None
        active.stop = active.stop or why
        if active.plugin is not None:
            active.plugin.cancel()
        if not active.job.cancel_requested:
            await self._change(active, patient=False, cancel_requested=True)
        if self.queue.discard(job_id):
            await self._cancelled(active)
        return active.job

    async def drain(self, seconds: float) -> None:
        """Start nothing more; give what runs `seconds`, then put it back into the queue."""
        self.draining = True
        self.broadcast.end_all()
        self._let_go(self.queue.waiting)
        running = [self.active[job_id] for job_id in self.queue.running if job_id in self.active]
        if running:
            ends = asyncio.create_task(asyncio.wait({one.done for one in running}))
            hurry = asyncio.create_task(self._hurry.wait())
            either: set[asyncio.Future[Any]] = {ends, hurry}
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for each in either:
                each.cancel()
        for one in running:
            one.stop = one.stop or "shutdown"
            if one.plugin is not None:
                one.plugin.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        self._let_go(self.active)

    def hasten(self) -> None:
        """End the patience of a drain: what runs is put back into the queue now."""
        self._hurry.set()

    def _let_go(self, job_ids: Iterable[str]) -> None:
        """Tell who waits for these jobs that they will not end under this server."""
        for job_id in job_ids:
            done = self.active[job_id].done
            if not done.done():
                done.set_exception(Interrupted("The server stops; the job is queued.", job=job_id))
                done.exception()  # it is no fault if nobody waits

    async def close(self) -> None:
        """Stop the journal's thread."""
        await asyncio.to_thread(self._journal.shutdown)

    # --- estimating ------------------------------------------------------------------------

    def expected_seconds(self, model_id: str) -> float | None:
        """What the last runs of a model took (of any model, where it has none), or None."""
        last = self._seconds.get(model_id) or [s for each in self._seconds.values() for s in each]
        return statistics.median(last) if last else None

    def places(self) -> dict[str, tuple[int, float]]:
        """The place of each waiting job, 0 the next, and the seconds until it starts."""
        waiting = self.queue.waiting
        return dict(zip(waiting, enumerate(self._starts(waiting)), strict=False))

    def seconds_until_room(self) -> float:
        """When one of the jobs that wait will have left the queue."""
        return self._starts(self.queue.waiting)[0]

    def _starts(self, waiting: list[str]) -> list[float]:
        now = time.monotonic()
        known: dict[str, float] = {}

        def seconds(job_id: str) -> float:
            model_id = self.active[job_id].job.model.modelID
            if model_id not in known:
                known[model_id] = self.expected_seconds(model_id) or _FIRST_RUN_SECONDS
            return known[model_id]

        running = [job_id for job_id in self.queue.running if job_id in self.active]
        remaining = [max(0.0, seconds(i) - (now - self.active[i].started)) for i in running]
        durations = [seconds(job_id) for job_id in waiting]
        return estimate_starts(self.queue.slot_count, remaining, durations)
