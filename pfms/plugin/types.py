"""The types that jobs, executors and the plugin exchange."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Resultant = Literal["labels", "onehot", "logits"]
Stage = Literal["loading", "inferring", "resampling", "writing", "checking"]
STAGES: tuple[Stage, ...] = ("loading", "inferring", "resampling", "writing", "checking")
"""What a run goes through, in this order; after the plugin has ended, pfms checks its result."""


@dataclass(frozen=True)
class HostFacts:
    """What the plugin's libraries expect of a machine, and whether this one has it.

    Attributes:
        has_user: The user ID has a passwd entry; without one, `import monai` fails.
        spare_home: A folder to use as HOME if HOME is not writable; else None.
    """

    has_user: bool = True
    spare_home: str | None = None


ORDINARY_HOST = HostFacts()


@dataclass(frozen=True)
class PluginRun:
    """Everything that an executor needs for one run of the plugin.

    Attributes:
        job: The job's ID, which marks its processes (`marks.JOB_MARK`).
        root: The job's folder, which is the plugin's working directory.
        argv: The command line, the executable first; paths are relative to `root`.
        environment: What to set on top of the server's own environment.
        log: The file that stdout and stderr are appended to.
        max_log_bytes: Of more than this, the log keeps the head and the tail.
        max_memory: Bytes for each of its processes; 0 sets no limit.
        memory: Bytes that it is estimated to need; 0 if that is not known.
        slot: The place that it runs in; one run at a time is in it. Empty if it has none.
        kind: Runs of the same kind may follow each other in one process, if the executor does that.
        time_limit: Seconds from the start, after which the run is ended.
        grace: Seconds between TERM and KILL.
    """

    job: str
    root: Path
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    time_limit: float
    grace: float
    max_log_bytes: int = 16 << 20
    max_memory: int = 0
    memory: int = 0
    slot: str = ""
    kind: str = ""


@dataclass(frozen=True)
class PluginExit:
    """How a run ended, whatever happened.

    Attributes:
        code: The exit code; None if a signal ended it or it never started.
        signal: The number of the signal that ended it, else None.
        seconds: From start to end.
        ended_by: `itself`; `time-limit` (the executor ended it); `executor` (the executor lost it,
            through no fault of the run: it may be tried again); `not-started`.
        message: Why it was not started or was lost, in one line; else empty.
        blameless: It was lost with its machine or with the connection to it, so that this says
            nothing against the run.
        peak_memory: The most bytes of memory that one of its processes held (resident pages, also
            those that it shared with the process it was forked from); None if it is not known.
        node: The machine that it ran on, as in the names of devices; None if it is this one.
        versions: There, of everything that affects the voxels; None if it ran on this machine.
    """

    code: int | None
    signal: int | None
    seconds: float
    ended_by: Literal["itself", "time-limit", "executor", "not-started"] = "itself"
    message: str = ""
    blameless: bool = False
    peak_memory: int | None = None
    node: str | None = None
    versions: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        stage: One of `STAGES`.
        done: How much of the stage is done: windows of the network while `inferring`, otherwise
            per cent; None if unknown.
        total: How much there is to do, in the same unit; None if unknown.
    """

    stage: Stage
    done: int | None = None
    total: int | None = None

    @property
    def part(self) -> float:
        """How much of the stage is done, 0 to 1; 0 if unknown."""
        return min(1.0, (self.done or 0) / self.total) if self.total else 0.0


OnProgress = Callable[[Progress], None]
