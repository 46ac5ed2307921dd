"""A forked process for each job: its parent has already imported the plugin.

Each run is in its own process group, with the same arguments, environment and voxels as with
`fresh`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from pfms.executors.base import Missing
from pfms.executors.devices import available
from pfms.executors.stages import Stages
from pfms.executors.warm_link import ParentFailed, WarmParent
from pfms.metrics import RestartReason
from pfms.plugin import PLUGIN
from pfms.plugin.adaptations import adaptations
from pfms.plugin.command import PluginCommand
from pfms.plugin.types import OnProgress, PluginExit, PluginRun
from pfms.plugin.verdict import one_line
from pfms.processes.marks import WORKSPACE_MARK
from pfms.processes.output import keeping_output
from pfms.processes.run import run_child

log = logging.getLogger(__name__)

_START_SECONDS = 180.0  # for importing the plugin; it usually takes 5 to 10, more from a cold disk
_MAX_FAILED_STARTS = 3  # in a row, after which runs no longer wait
_MAX_PAUSE_SECONDS = 60.0  # seconds between failed starts
_IDLE_SECONDS = 30.0  # for which a process that may stay keeps its memory, also that of a GPU
_END_GRACE_SECONDS = 2.0  # for the children of a parent whose server has died

_WARMING = Missing("warming", "the plugin is being started; jobs are accepted and wait")

# Otherwise an import that asks about CUDA would start it, and no fork could use it then.
_PARENT_ENVIRONMENT = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


class WarmExecutor:
    """Keeps a parent that has imported the plugin, and has it fork a child for each run.

    Args:
        command: How the plugin is called; not `foreign`.
        environment: The usual environment of runs (`Plugin.environment`). The parent starts with
            it, because some of it is read only once; a run's differences are set in its child.
        workspace_mark: As for `FreshExecutor`.
        without: Names of adaptations to leave out.
        runs_per_process: How many runs of the same slot and kind may follow each other in one
            process; 1 forks a process for each.
        idle_seconds: For how long a process waits for its next run.
        on_restart: Called whenever the parent has to be started again, with the reason.
        pause_seconds: The pause after a failed start; doubled after each further failure.
    """

    name = "warm"

    def __init__(
        self,
        command: PluginCommand,
        environment: Mapping[str, str],
        workspace_mark: str = "",
        *,
        without: Sequence[str] = (),
        runs_per_process: int = 1,
        idle_seconds: float = _IDLE_SECONDS,
        on_restart: Callable[[RestartReason], None] | None = None,
        pause_seconds: float = 1.0,
    ) -> None:
        if command.kind == "foreign":
            raise ValueError("a foreign command cannot be forked")
        self._command = command
        self._marks = {WORKSPACE_MARK: workspace_mark} if workspace_mark else {}
        self._environment = {**environment, **_PARENT_ENVIRONMENT, **self._marks}
        script = command.argv[-1] if command.kind == "script" else None
        self._order = {
            "entry_point": command.entry_point,
            "script": script,
            "package": PLUGIN.name,
            "grace": _END_GRACE_SECONDS,
            "adaptations": [step.name for step in adaptations(without)],
        }
        self._stay = {"runs": runs_per_process, "seconds": idle_seconds}
        self._on_restart = on_restart or (lambda reason: None)
        self._pause_seconds = pause_seconds
        self._parent: WarmParent | None = None
        self._failure = ""  # why there is no parent, after too many failed starts
        self._decided = asyncio.Event()  # set when there is a parent or a failure
        self._keeper: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to keep a parent; returns when there is one, or when too many starts failed."""
        self._keeper = asyncio.create_task(self._keep_parent())
        await self._decided.wait()

    def missing(self) -> Missing | None:
        """`warming` until the parent is ready, `plugin-broken` if it does not start."""
        if self._parent is not None:
            return None
        if not self._failure:
            return _WARMING
        return Missing("plugin-broken", f"{one_line(self._failure)} Run `pfms doctor` for details.")

    def devices(self) -> tuple[str, ...]:
        """The devices of this machine."""
        return available()

    def watch_devices(self, on_change: Callable[[], None]) -> None:
        """Do nothing: a machine's devices stay the same."""

    async def run(self, run: PluginRun, on_progress: OnProgress | None = None) -> PluginExit:
        """Run the plugin to its end, as `Executor` says. Waits for the parent first."""
        begun = time.monotonic()
        parent = await self._ready_parent()
        if parent is None:
            waited = time.monotonic() - begun
            return PluginExit(None, None, waited, "not-started", self._failure)
        argv = list(run.argv[1:] if self._command.kind == "script" else run.argv)
        stages = Stages(on_progress)
        stay = None
        if self._stay["runs"] > 1 and run.slot:
            stay = {**self._stay, "slot": run.slot, "kind": run.kind}
        async with keeping_output(run.log, run.max_log_bytes, stages.read) as output:
            return await run_child(
                parent.fork(
                    run, argv, {**run.environment, **self._marks}, output, stages.report, stay
                ),
                job=run.job,
                command=self._command.argv[-1],
                cwd=run.root,
                time_limit=run.time_limit,
                grace=run.grace,
            )

    async def close(self) -> None:
        """End the parent, and any runs with it."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if self._parent is not None:
            await self._parent.close()
            self._parent = None
        for task in self._retiring:
            task.cancel()
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def _keep_parent(self) -> None:
        """Start a parent, and another one whenever it is gone or retired."""
        failures = 0
        while True:
            try:
                parent = await WarmParent.start(
                    self._command.interpreter, self._environment, self._order, _START_SECONDS
                )
            except Exception as error:  # whatever the error, keep trying
                failures += 1
                known = isinstance(error, ParentFailed)
                log.error("the plugin does not start: %s", error, exc_info=not known)
                self._on_restart("not-started")
                if failures >= _MAX_FAILED_STARTS:
                    self._failure = f"The plugin does not start: {error}"
                    self._decided.set()
            else:
                failures, self._failure = 0, ""
                self._parent = parent
                self._decided.set()
                await asyncio.wait({parent.retired})
                self._parent = None
                self._decided.clear()
                if not parent.gone.done():  # it is retired: its runs go on, new ones wait
                    self._on_restart("replaced")
                    continue
                log.error("the process that held the plugin ready has died; starting another")
                self._on_restart("died")
            pause = self._pause_seconds * 2 ** min(failures, 10)
            await asyncio.sleep(min(pause, _MAX_PAUSE_SECONDS))

    async def _ready_parent(self) -> WarmParent | None:
        """A parent that matches the plugin as it is installed now; None if it does not start."""
        while True:
            await self._decided.wait()
            parent = self._parent
            if parent is None:
                return None
            why = await asyncio.to_thread(parent.why_replace)
            if not why and not parent.retired.done():
                return parent
            if not parent.retired.done():
                log.info("%s: importing the plugin again", why)
                task = asyncio.create_task(parent.retire())
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
            if parent is self._parent:  # the keeper has not noticed yet
                self._decided.clear()
