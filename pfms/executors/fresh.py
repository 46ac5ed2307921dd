"""A fresh process a job: the command line as a person would type it."""

import asyncio

from pfms.executors.base import OnProgress, OnStart, PluginExit, PluginRun
from pfms.executors.stages import Stages, size_of
from pfms.process import WORKSPACE_MARK, run_in_group


class FreshExecutor:
    """Starts the plugin for each run anew.

    Args:
        workspace_mark: Put into the environment of each process, by which a later server of the
            same workspace finds those that outlived this one (`process.WORKSPACE_MARK`).
        poll_seconds: Between two looks at the log for the progress.
    """

    name = "fresh"

    def __init__(self, workspace_mark: str = "", poll_seconds: float = 0.5) -> None:
        self._marks = {WORKSPACE_MARK: workspace_mark} if workspace_mark else {}
        self._poll_seconds = poll_seconds

    async def start(self) -> None:
        """Nothing to get ready."""

    def missing(self) -> str | None:
        """Nothing ever is."""
        return None

    async def run(
        self, run: PluginRun, on_start: OnStart, on_progress: OnProgress | None = None
    ) -> PluginExit:
        """Run the plugin to its end, as `Executor` says."""
        follower: asyncio.Task[None] | None = None
        old_log = await asyncio.to_thread(size_of, run.log)

        async def started(group: int) -> None:
            nonlocal follower
            await on_start(group)
            if on_progress is not None:
                follower = asyncio.create_task(
                    Stages(on_progress).follow(run.log, old_log, self._poll_seconds)
                )

        try:
            return await run_in_group(
                run.argv,
                job=run.job,
                cwd=run.root,
                environment={**run.environment, **self._marks},
                log_file=run.log,
                time_limit=run.time_limit,
                grace=run.grace,
                on_start=started,
            )
        finally:
            if follower is not None:
                follower.cancel()

    async def close(self) -> None:
        """Nothing was started."""
