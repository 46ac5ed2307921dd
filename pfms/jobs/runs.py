"""What happens to a job from its acceptance to its end: it waits, runs, is judged, is recorded.

While a job is active, only this module changes its state. It runs on the event loop; blocking calls
go to threads.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from pfms import trace
from pfms.access.audit import AuditLog
from pfms.aio import first_of
from pfms.errors import DiskFull, Interrupted, JobNotFound, PfmsError, PluginFailed
from pfms.executors.base import Executor
from pfms.jobs.attempt import Attempt
from pfms.jobs.estimates import DEFAULT_SHARES, Estimates, Need, Shares, estimate_starts
from pfms.jobs.events import Broadcast
from pfms.jobs.job import Job, RunEnd
from pfms.jobs.journal import Journal
from pfms.jobs.queue import JobQueue, Slot
from pfms.metrics import Metrics, StageTimes
from pfms.plugin.command import PluginCommand
from pfms.plugin.types import PluginExit, Progress
from pfms.settings import Settings
from pfms.spans import Spans
from pfms.storage.disk import reporting_full_disk
from pfms.storage.workspace import Workspace

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.5  # at least, between two records of progress within a stage
_DEFAULT_RUN_SECONDS = 30.0  # how long a run is assumed to take before any has been seen
_RETRY_SECONDS = 1.0  # between attempts to record a step on a full disk
_MAX_RETRY_SECONDS = 60.0  # between attempts to record a step that fails for another reason
_MOST_LOSSES = 10  # of a job's runs that do not count as attempts: it may be what ends its nodes
_SIGNAL_DELAY_SECONDS = 0.2  # in which a signal that ended our processes reaches us as well

StopReason = Literal["cancelled", "client-gone", "shutdown"]
Step = Callable[[Job], Job]
_WHY_CANCELLED = {
    "cancelled": "It was cancelled by a call.",
    "client-gone": "The client went away during its blocking call.",
}


@dataclass
class Active:
    """A job that has not ended, and the work on it. `done` gets the job when it has ended."""

    job: Job
    done: asyncio.Future[Job]
    queued: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    progress: Progress | None = None
    progress_sent_at: float = 0.0
    shares: Shares = DEFAULT_SHARES
    started: float = 0.0
    plugin: asyncio.Task[PluginExit] | None = None
    losses: int = 0
    stop: StopReason | None = None

    @property
    def fraction(self) -> float:
        """How much of the run is done, 0 to 1: by the time that the stages of recent runs took."""
        return self.shares.fraction(self.progress) if self.progress is not None else 0.0

    @property
    def memory(self) -> int:
        """Bytes that its run is estimated to need."""
        return self.job.estimated_memory_bytes or 0


class Runs:
    """The jobs that have not ended."""

    def __init__(
        self,
        settings: Settings,
        workspace: Workspace,
        journal: Journal,
        executor: Executor,
        command: PluginCommand,
        queue: JobQueue,
        metrics: Metrics,
        audit: AuditLog,
        spans: Spans,
    ) -> None:
        self._settings = settings
        self._workspace = workspace
        self._journal = journal
        self._executor = executor
        self._command = command
        self.queue = queue
        self._metrics = metrics
        self._audit = audit
        self._spans = spans
        self.estimates = Estimates()
        self.broadcast = Broadcast()
        self.active: dict[str, Active] = {}
        self.draining = False
        self._drain_now = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- queueing --------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """Add a job that is on record as queued."""
        self.active[job.id] = Active(job, asyncio.get_running_loop().create_future())
        self.queue.add(job.id, job.owner, self.active[job.id].memory)
        self._note(job)
        if self.draining:
            self._release_callers([job.id])
        self.dispatch()

    def dispatch(self) -> None:
        """Give free slots to waiting jobs."""
        while not self.draining and (taken := self.queue.take()) is not None:
            job_id, slot = taken
            self._spawn(self._run(self.active[job_id], slot))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- running ---------------------------------------------------------------------------

    async def _run(self, active: Active, slot: Slot) -> None:
        """Run a job in a slot and record the outcome. The slot is always freed."""
        job_id = active.job.id
        trace.work_on(job_id, active.job.traceparent)
        waited = time.monotonic() - active.queued
        self._metrics.waited(waited)
        self._spans.passed("wait", waited)
        stages = self._metrics.stages()
        try:
            step = await self._attempt(active, slot, stages)
        except PfmsError as error:
            step = self._failed(error)
        except Exception:
            log.exception("job %s: an error in pfms itself", job_id)
            step = self._failed(PluginFailed("pfms could not run the plugin for this job."))
        finally:
            stages.enter(None)
        try:
            await self._record(active, step)
        except Exception:  # not a full disk: the slot must not wait until this can be recorded
            log.exception("job %s: its end cannot be recorded; this will be tried again", job_id)
            self._spawn(self._record_later(active, step))
        else:
            self._requeue(active)
        finally:
            self.queue.release(job_id)
            self.dispatch()

    async def _attempt(self, active: Active, slot: Slot, stages: StageTimes) -> Step:
        """Run the plugin for a job; returns the step that the job takes next.

        Raises:
            PfmsError: There is no result; the kind of error says why.
        """
        attempt = Attempt(self._settings, self._command, self._workspace, active.job)
        run, facts = await asyncio.to_thread(attempt.prepare, slot, self._executor.name)
        await self._change(active, lambda job: job.started(facts))
        active.started = time.monotonic()
        active.shares = self.estimates.shares(active.job.model.modelID)

        if active.stop is None:
            active.plugin = asyncio.create_task(
                self._executor.run(run, lambda told: self._on_progress(active, told, stages))
            )
            with self._spans.span("run"):
                await asyncio.wait({active.plugin})
        await asyncio.to_thread(attempt.settle)
        if active.plugin is None or active.plugin.cancelled():
            return self._stopped(active)
        plugin_exit = active.plugin.result()
        if plugin_exit.ended_by == "executor":
            await asyncio.sleep(_SIGNAL_DELAY_SECONDS)
            active.losses += plugin_exit.blameless
            free = plugin_exit.blameless and active.losses <= _MOST_LOSSES
            if free or self.draining or active.job.attempts < self._settings.max_attempts:
                log.warning("job %s: %s; it will run again", active.job.id, plugin_exit.message)
                return self._stopped(active, free=free)

        self._on_progress(active, Progress("checking"), stages)
        loop = asyncio.get_running_loop()

        def on_part(part: float) -> None:  # in a thread
            progress = Progress("checking", int(100 * part), 100)
            loop.call_soon_threadsafe(self._on_progress, active, progress)

        end = RunEnd(
            plugin_exit.code,
            round(plugin_exit.seconds, 3),
            plugin_exit.peak_memory,
            plugin_exit.node,
            plugin_exit.versions,
        )
        self._metrics.peak_memory(plugin_exit.peak_memory)
        try:
            with self._spans.span("judge"):
                segmentation, warnings = await asyncio.to_thread(
                    attempt.judge, plugin_exit, on_part
                )
        except PfmsError as error:
            if isinstance(error, DiskFull):  # free the space that the run took
                await asyncio.to_thread(self._workspace.job(active.job.id).clear_output)
            return self._failed(error, end)
        if active.stop in _WHY_CANCELLED:
            return self._stopped(active)
        stages.enter(None)
        seconds = time.monotonic() - active.started
        self.estimates.remember(active.job.model.modelID, seconds, stages.seconds)
        return lambda job: job.succeeded(end, segmentation, warnings)

    def _stopped(self, active: Active, *, free: bool = False) -> Step:
        """The step after a run that was ended on request, or through no fault of its own.

        `free` does not count it as an attempt.
        """
        if active.stop in _WHY_CANCELLED:
            why = _WHY_CANCELLED[active.stop]
            return lambda job: job.cancelled(why)
        orderly = self.draining or free
        return lambda job: job.requeued(count_the_attempt=not orderly)

    def _failed(self, error: PfmsError, end: RunEnd | None = None) -> Step:
        return lambda job: job.failed(error, end)

    def _requeue(self, active: Active) -> None:
        """If a job is on record as queued again, put it at the front of the queue."""
        if active.job.state == "queued" and active.job.id in self.active:
            active.plugin = None
            active.progress = None
            active.queued = time.monotonic()
            self.queue.put_back(active.job.id, active.job.owner, active.memory)
            if self.draining:
                self._release_callers([active.job.id])

    # --- recording -------------------------------------------------------------------------

    async def _record(self, active: Active, step: Step) -> None:
        """Record a step; if the disk is full, wait for room.

        During a drain this gives up: the next start finds the job as it was and resumes it.
        """
        while True:
            try:
                await self._change(active, step)
                return
            except DiskFull as error:
                log.error("job %s cannot be recorded: %s", active.job.id, error)
                if self.draining:
                    return
                if not active.job.ended and step(active.job).error is not None:
                    # the record of a failure is worth more than what the run wrote
                    await asyncio.to_thread(self._workspace.job(active.job.id).clear_output)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _record_later(self, active: Active, step: Step) -> None:
        """Keep trying to record a step, without a slot, until it succeeds or the server drains."""
        trace.work_on(active.job.id, active.job.traceparent)
        pause = _RETRY_SECONDS
        while not self.draining:
            await self._sleep_unless_draining(pause)
            pause = min(2 * pause, _MAX_RETRY_SECONDS)
            try:
                await self._record(active, step)
            except Exception as error:
                log.error("job %s still cannot be recorded: %s", active.job.id, error)
            else:
                self._requeue(active)
                self.dispatch()
                return

    async def _change(self, active: Active, step: Step) -> None:
        """Record a step, then announce it. Until it is on record, it has not happened.

        Raises:
            DiskFull: There is no room to record it.
            OSError, sqlite3.Error: It cannot be recorded.
        """
        async with active.lock:
            if active.job.ended:  # another step was recorded first
                return
            job = step(active.job)
            try:
                with reporting_full_disk():
                    event = await self._journal.call(self._journal.records.write, job)
            except JobNotFound as error:  # someone removed its folder and the table
                self.active.pop(job.id, None)
                if not active.done.done():
                    active.done.set_exception(error)
                    active.done.exception()  # marks it as retrieved: perhaps nobody is waiting
                return
            active.job = job
        self.broadcast.send(job.id, event)
        if job.ended:
            self.active.pop(job.id, None)
            self.count_end(job)
            if not active.done.done():  # a drain has already released the callers
                active.done.set_result(job)

    def count_end(self, job: Job) -> None:
        """Count a job whose end is on record."""
        self._metrics.ended(job.state, job.error.code if job.error else None)
        self._note(job)

    def _note(self, job: Job) -> None:
        """Tell the audit log that a job was accepted or resumed, or how it ended."""
        self._audit.write(
            "job",
            job=job.id,
            state=job.state,
            code=job.error.code if job.error else None,
            owner=job.owner,
            model=job.model.modelID,
            model_sha256=job.model.sha256,
            volume_sha256=job.volume.sha256,
            attempts=job.attempts,
        )

    def _on_progress(
        self, active: Active, progress: Progress, stages: StageTimes | None = None
    ) -> None:
        if stages is not None:
            stages.enter(progress.stage)
        new_stage = active.progress is None or active.progress.stage != progress.stage
        active.progress = progress
        now = time.monotonic()
        if new_stage or now - active.progress_sent_at >= _PROGRESS_SECONDS:
            active.progress_sent_at = now
            self._spawn(self._send_progress(active.job.id, progress, active.fraction))

    async def _send_progress(self, job_id: str, progress: Progress, fraction: float) -> None:
        data = {"id": job_id, "state": "running", **progress.__dict__, "fraction": fraction}
        try:
            event = await self._journal.call(self._journal.records.progress, job_id, data)
        except sqlite3.OperationalError:  # the disk is full: progress need not be recorded
            return
        if event is not None and job_id in self.active:
            self.broadcast.send(job_id, event)

    # --- ending ----------------------------------------------------------------------------

    async def cancel(self, job_id: str, why: StopReason = "cancelled") -> Job | None:
        """Cancel a job; None if it has already ended.

        Raises:
            DiskFull: There is no room to record the request. The job is cancelled all the same.
        """
        active = self.active.get(job_id)
        if active is None:
            return None
        if active.stop not in _WHY_CANCELLED:  # not even if the server stops, too
            active.stop = why
        if active.plugin is not None:
            active.plugin.cancel()
        waited = self.queue.discard(job_id)
        step = self._stopped(active) if waited else Job.asked_to_cancel
        try:
            if waited or not active.job.cancel_requested:
                await self._change(active, step)
        except BaseException:
            if waited:  # it will not run, and is recorded as cancelled as soon as possible
                self._spawn(self._record_later(active, step))
            raise
        return active.job

    async def drain(self, seconds: float) -> None:
        """Start nothing more; give running jobs `seconds` to end, then requeue them."""
        self.draining = True
        self.broadcast.end_all()
        self._release_callers(self.queue.waiting)
        running = [self.active[job_id] for job_id in self.queue.running if job_id in self.active]
        if running:
            await first_of(
                asyncio.wait({one.done for one in running}), self._drain_now.wait(), seconds=seconds
            )
        self._drain_now.set()
        for one in running:
            one.stop = one.stop or "shutdown"
            if one.plugin is not None:
                one.plugin.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        self._release_callers(self.active)

    def drain_now(self) -> None:
        """Cut a drain short: requeue the running jobs now."""
        self._drain_now.set()

    async def _sleep_unless_draining(self, seconds: float) -> None:
        await first_of(self._drain_now.wait(), seconds=seconds)

    def _release_callers(self, job_ids: Iterable[str]) -> None:
        """Tell the calls that wait for these jobs that this server will not finish them."""
        for job_id in job_ids:
            done = self.active[job_id].done
            if not done.done():
                done.set_exception(
                    Interrupted("The server is stopping; the job is queued.", job=job_id)
                )
                done.exception()  # marks it as retrieved: perhaps nobody is waiting

    # --- estimating ------------------------------------------------------------------------

    def places(self) -> dict[str, tuple[int, float]]:
        """The place of each waiting job, from 0, and the seconds until it starts."""
        waiting = self.queue.waiting
        return dict(zip(waiting, enumerate(self._starts(waiting)), strict=False))

    def seconds_until_room(self) -> float:
        """How soon one of the waiting jobs will have left the queue."""
        return next(iter(self._starts(self.queue.waiting)), 0.0)

    def seconds_until_one_ends(self, owner: str | None) -> float:
        """How soon one of an owner's jobs is expected to end."""
        places, seconds = self.places(), self._expected_seconds()
        ends = [
            places[job_id][1] + seconds(active) if job_id in places else self._left(active, seconds)
            for job_id, active in self.active.items()
            if active.job.owner == owner
        ]
        return min(ends, default=_DEFAULT_RUN_SECONDS)  # else they are still being received

    def _starts(self, waiting: list[str]) -> list[float]:
        seconds = self._expected_seconds()
        running = [self.active[job_id] for job_id in self.queue.running if job_id in self.active]
        return estimate_starts(
            self.queue.slot_count,
            self.queue.memory,
            [Need(self._left(active, seconds), active.memory) for active in running],
            [Need(seconds(one), one.memory) for one in map(self.active.__getitem__, waiting)],
        )

    def _left(self, active: Active, seconds: Callable[[Active], float]) -> float:
        return max(0.0, seconds(active) - (time.monotonic() - active.started))

    def _expected_seconds(self) -> Callable[[Active], float]:
        """How long the runs of jobs are expected to take, computed once for each model."""
        known: dict[str, float] = {}

        def seconds(active: Active) -> float:
            model_id = active.job.model.modelID
            if model_id not in known:
                known[model_id] = self.estimates.expected(model_id) or _DEFAULT_RUN_SECONDS
            return known[model_id]

        return seconds
