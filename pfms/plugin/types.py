"""What crosses between the jobs, the executors and the plugin."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Resultant = Literal["labels", "onehot", "logits"]
Stage = Literal["loading", "inferring", "saving"]
STAGES: tuple[Stage, ...] = ("loading", "inferring", "saving")


@dataclass(frozen=True)
class HostFacts:
    """What the plugin's libraries ask of the machine that it may not have.

    Attributes:
        has_user: The user ID has a passwd entry; without one `import monai` dies.
        spare_home: A folder to be HOME, where HOME itself cannot be written; else None.
    """

    has_user: bool = True
    spare_home: str | None = None


ORDINARY_HOST = HostFacts()


@dataclass(frozen=True)
class PluginRun:
    """One call of the plugin, fully said.

    Attributes:
        job: The job's ID, which marks its processes (`marks.JOB_MARK`).
        root: The job's folder: the working directory of the plugin.
        argv: The command line, the executable first; paths relative to `root`.
        environment: What is set on top of the server's own environment.
        log: Where stdout and stderr go; appended to.
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


@dataclass(frozen=True)
class PluginExit:
    """How a run ended: the one terminal message, whatever happened.

    Attributes:
        code: The exit code; None where a signal ended it or it never started.
        signal: The number of the signal that ended it, else None.
        seconds: From start to end.
        ended_by: `itself`; `time-limit` (the executor ended it); `executor` (the executor lost it,
            through no fault of the run: it may be tried again); `not-started`.
        message: Why it was not started or was lost, one line; else empty.
    """

    code: int | None
    signal: int | None
    seconds: float
    ended_by: Literal["itself", "time-limit", "executor", "not-started"] = "itself"
    message: str = ""


@dataclass(frozen=True)
class Progress:
    """What a run says of itself meanwhile.

    Attributes:
        stage: `loading`, `inferring` or `saving`.
        done: Windows the network has done, or None where nobody can know.
        total: Windows in all, likewise.
    """

    stage: str
    done: int | None = None
    total: int | None = None


OnProgress = Callable[[Progress], None]
