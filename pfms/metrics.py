"""What /metrics tells: counters and gauges of one app, and the names that their labels may have.

No label names a job, a patient, a file or a token, and every label has a fixed set of values.
"""

import asyncio
import platform
import time
from collections.abc import Callable
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
)

from pfms import __version__
from pfms.errors import PfmsError, leaves
from pfms.plugin.types import STAGES

UploadKind = Literal["volume", "model"]
RestartReason = Literal["died", "replaced", "not-started"]

RUN_STAGES = ("preparing", *STAGES)
NO_CAUSE = "none"
OTHER = "other"

_WAIT_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 10800, 43200)
_RUN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1800)
_MEMORY_BUCKETS = tuple(2**28 * n for n in (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256))
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LAG_SECONDS = 0.25  # between two looks at the event loop's lag


class Metrics:
    """The metrics of one app, in a registry of its own.

    What happens is counted when it happens, by the methods. What is so at this moment (the gauges)
    is set just before a scrape, by `Service.measure`.
    """

    def __init__(self) -> None:
        # Its twin of every series would say when it was first counted. For every app of a process.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        here = self.registry

        build = Info("pfms_build", "Version of pfms and of its Python.", registry=here)
        build.info({"version": __version__, "python": platform.python_version()})
        self.ready = Gauge("pfms_ready", "1 if /health/ready answers 200, else 0.", registry=here)

        self._accepted = Counter("pfms_jobs_accepted", "Jobs that were accepted.", registry=here)
        self._ended = Counter(
            "pfms_jobs_ended",
            "Jobs that have ended, by final state and error code.",
            ("state", "cause"),
            registry=here,
        )
        self.jobs = Gauge("pfms_jobs", "Jobs that have not ended.", ("state",), registry=here)
        self.queue_limit = Gauge("pfms_queue_limit", "Jobs that may wait.", registry=here)
        self._wait = Histogram(
            "pfms_queue_wait_seconds",
            "How long jobs waited in the queue before they were started.",
            buckets=_WAIT_BUCKETS,
            registry=here,
        )
        self.slots = Gauge("pfms_slots", "Jobs that can run at a time.", registry=here)
        self.slots_usable = Gauge(
            "pfms_slots_usable", "Slots on devices that are available now.", registry=here
        )
        self.slots_busy = Gauge("pfms_slots_busy", "Slots in which a job runs.", registry=here)
        self.memory_limit = Gauge(
            "pfms_memory_limit_bytes",
            "What runs may use together (PFMS_MEMORY_LIMIT); 0 is no limit.",
            registry=here,
        )
        self.memory_promised = Gauge(
            "pfms_memory_promised_bytes",
            "What the running jobs are estimated to need.",
            registry=here,
        )
        self._stage = Histogram(
            "pfms_stage_seconds",
            "How long each stage of a run took.",
            ("stage",),
            buckets=_RUN_BUCKETS,
            registry=here,
        )

        self._peak_memory = Histogram(
            "pfms_run_peak_memory_bytes",
            "The most memory that one process of a run held.",
            buckets=_MEMORY_BUCKETS,
            registry=here,
        )

        self._uploaded = Counter(
            "pfms_upload_bytes",
            "Bytes of uploaded files, refused ones too.",
            ("kind",),
            registry=here,
        )
        self._refusals = Counter(
            "pfms_refusals", "Answers that report a problem, by its code.", ("code",), registry=here
        )
        self._not_admitted = Counter(
            "pfms_admission_failures",
            "Uploads that were received whole and cannot be used, by error code.",
            ("kind", "code"),
            registry=here,
        )

        self._restarts = Counter(
            "pfms_warm_parent_restarts",
            "How often the process that keeps the plugin ready had to be started again.",
            ("reason",),
            registry=here,
        )
        self.disk_free = Gauge(
            "pfms_disk_free_bytes", "Free on the disk of the workspace.", registry=here
        )
        self.disk_kept_free = Gauge(
            "pfms_disk_min_free_bytes",
            "What uploads leave free (PFMS_MIN_FREE_BYTES).",
            registry=here,
        )
        self._lag = Histogram(
            "pfms_event_loop_lag_seconds",
            "How late the event loop wakes a task.",
            buckets=_LAG_BUCKETS,
            registry=here,
        )
        self._show_zeros()

    def _show_zeros(self) -> None:
        """Show what has not happened yet, where there are few labels: alerts need a start value."""
        for state in ("queued", "running"):
            self.jobs.labels(state)
        self._ended.labels("succeeded", NO_CAUSE)
        for stage in RUN_STAGES:
            self._stage.labels(stage)
        for kind in ("volume", "model"):
            self._uploaded.labels(kind)
        for reason in ("died", "replaced", "not-started"):
            self._restarts.labels(reason)

    def accepted(self) -> None:
        """A job was accepted."""
        self._accepted.inc()

    def ended(self, state: str, error: str | None) -> None:
        """A job has ended; `error` is the code of its error, if it has one."""
        self._ended.labels(state, NO_CAUSE if error is None else known(error)).inc()

    def waited(self, seconds: float) -> None:
        """A job leaves the queue to be started."""
        self._wait.observe(seconds)

    def stages(self) -> "StageTimes":
        """A run begins."""
        return StageTimes(lambda stage, seconds: self._stage.labels(stage).observe(seconds))

    def peak_memory(self, size: int | None) -> None:
        """A run has ended, one of whose processes held `size` bytes; None if that is not known."""
        if size is not None:
            self._peak_memory.observe(size)

    def uploaded(self, kind: UploadKind, size: int) -> None:
        """The body of an upload has ended, or was given up, after `size` bytes of its file."""
        self._uploaded.labels(kind).inc(size)

    def refused(self, code: str) -> None:
        """A problem is sent."""
        self._refusals.labels(known(code)).inc()

    def not_admitted(self, kind: UploadKind, code: str) -> None:
        """An upload that was received whole is refused."""
        self._not_admitted.labels(kind, known(code)).inc()

    def parent_restarts(self, reason: RestartReason) -> None:
        """The process that keeps the plugin ready is started again."""
        self._restarts.labels(reason).inc()

    async def watch_loop(self) -> None:
        """Measure the event loop's lag until this is cancelled."""
        while True:
            due = time.monotonic() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self._lag.observe(max(0.0, time.monotonic() - due))


class StageTimes:
    """Measures the stages of one run; `tell` gets each one's name and seconds when it is over.

    Attributes:
        seconds: Of each stage that is over.
    """

    def __init__(self, tell: Callable[[str, float], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._tell = tell
        self._stage: str | None = RUN_STAGES[0]
        self._since = time.monotonic()

    def enter(self, stage: str | None) -> None:
        """The next stage begins, or with None the run ends; a stage is entered once."""
        if stage == self._stage:
            return
        now = time.monotonic()
        if self._stage is not None:
            self.seconds[self._stage] = now - self._since
            self._tell(self._stage, now - self._since)
        self._stage, self._since = stage, now


def known(code: str) -> str:
    """The code of an error as a label: one that pfms has, or `other`."""
    codes = {PfmsError.code, *(kind.code for kind in leaves(PfmsError))}
    return code if code in codes else OTHER
