"""A fresh process for each job: the command line as a person would type it."""

from collections.abc import Callable

from pfms.executors.base import Missing
from pfms.executors.devices import available
from pfms.executors.stages import Stages
from pfms.plugin.types import OnProgress, PluginExit, PluginRun
from pfms.processes.marks import WORKSPACE_MARK
from pfms.processes.output import keeping_output
from pfms.processes.run import run_in_group


class FreshExecutor:
    """Starts the plugin anew for each run.

    Args:
        workspace_mark: Set in the environment of each process (`marks.WORKSPACE_MARK`), so that a
            later server of the same workspace finds those that outlived this one.
    """

    name = "fresh"

    def __init__(self, workspace_mark: str = "") -> None:
        self._marks = {WORKSPACE_MARK: workspace_mark} if workspace_mark else {}

    async def start(self) -> None:
        """Do nothing: there is nothing to get ready."""

    def missing(self) -> Missing | None:
        """None: runs start at once."""
        return None

    def devices(self) -> tuple[str, ...]:
        """The devices of this machine."""
        return available()

    def watch_devices(self, on_change: Callable[[], None]) -> None:
        """Do nothing: a machine's devices stay the same."""

    async def run(self, run: PluginRun, on_progress: OnProgress | None = None) -> PluginExit:
        """Run the plugin to its end, as `Executor` says."""
        stages = Stages(on_progress)
        async with keeping_output(run.log, run.max_log_bytes, stages.read) as output:
            return await run_in_group(
                run.argv,
                job=run.job,
                cwd=run.root,
                environment={**run.environment, **self._marks},
                output=output,
                time_limit=run.time_limit,
                grace=run.grace,
                max_memory=run.max_memory,
            )

    async def close(self) -> None:
        """Do nothing: nothing was started."""
