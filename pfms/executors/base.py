"""The interface of executors, by which everything above them runs the plugin."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from pfms.plugin.types import OnProgress, PluginExit, PluginRun


class Missing(NamedTuple):
    """What keeps runs waiting: a name for programs, and a description for people."""

    name: str
    description: str


class Executor(Protocol):
    """Runs the plugin. To cancel a run, cancel the task that awaits `run`."""

    name: str

    async def start(self) -> None:
        """Get ready, which may take long; may raise `StartError`. Runs wait until then."""

    def missing(self) -> Missing | None:
        """What keeps runs waiting now, or None if they would start at once."""

    def devices(self) -> tuple[str, ...]:
        """Every device that a run can use now, the best first. Blocking.

        They are named `cpu` and `cuda:N`, or `NODE/cpu` and `NODE/cuda:N` on other machines.
        """

    def watch_devices(self, on_change: Callable[[], None]) -> None:
        """Have a function called on the event loop whenever there are other devices."""

    async def run(self, run: PluginRun, on_progress: OnProgress | None = None) -> PluginExit:
        """Run the plugin to its end.

        When this returns or raises, no process of the run is left.

        Args:
            run: The call.
            on_progress: Called on the event loop with the run's progress.

        Returns:
            How it ended. A plugin that fails does not raise.

        Raises:
            asyncio.CancelledError: The task was cancelled: TERM, `grace` seconds, KILL, then this.
        """

    async def close(self) -> None:
        """End whatever `start` started."""
