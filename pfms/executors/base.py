"""What an executor is: the one way in which `service` runs the plugin, whichever it is."""

from typing import NamedTuple, Protocol

from pfms.plugin.types import OnProgress, PluginExit, PluginRun


class Missing(NamedTuple):
    """What keeps runs waiting: a name for programs, and words for people."""

    name: str
    words: str


class Executor(Protocol):
    """Runs the plugin. To cancel a run, cancel the task that awaits `run`."""

    name: str

    async def start(self) -> None:
        """Get ready; may take long, may fail with `StartError`. Runs asked for meanwhile wait."""

    def missing(self) -> Missing | None:
        """What keeps runs waiting now, or None when they would start at once."""

    def devices(self) -> tuple[str, ...]:
        """Every device that a run can have now, the best first. It blocks."""

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
