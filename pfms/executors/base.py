"""What an executor is: the one way in which `service` runs the plugin, whichever it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True)
class PluginRun:
    """One call of the plugin, fully said.

    Attributes:
        job: The job's ID, which marks its processes (`process.JOB_MARK`).
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


class Executor(Protocol):
    """Runs the plugin. To cancel a run, cancel the task that awaits `run`."""

    name: str

    async def start(self) -> None:
        """Get ready; may take long, may fail with `StartError`. Runs asked for meanwhile wait."""

    def missing(self) -> str | None:
        """What keeps runs waiting now (`warming`), or None when ready."""

    async def run(self, run: PluginRun, on_progress: OnProgress | None = None) -> PluginExit:
        """Run the plugin to its end.

        When this returns or raises, no process of the run is left, whatever it started.

        Args:
            run: The call.
            on_progress: Told what the run says of itself, from the event loop.

        Returns:
            How it ended. A plugin that fails is no exception.

        Raises:
            asyncio.CancelledError: The task was cancelled: TERM, `grace` seconds, KILL, then this.
        """

    async def close(self) -> None:
        """End what `start` started."""
