"""Where the tests of the warm executor keep their plugins, jobs and processes."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pfms.executors.base import Executor
from pfms.executors.warm import WarmExecutor
from pfms.plugin import PLUGIN
from pfms.plugin.command import PluginCommand, resolve_command
from pfms.plugin.types import PluginExit, PluginRun
from pfms.processes.marks import WORKSPACE_MARK, find_marked


@dataclass
class House:
    """A folder for plugins and jobs, and executors that are closed after the test."""

    folder: Path
    mark: str
    executors: list[Executor] = field(default_factory=list)
    jobs: int = 0

    def script(self, text: str, name: str = "plugin.py") -> PluginCommand:
        path = self.folder / name
        path.write_text(text)
        return resolve_command(str(path))

    def warm(
        self, command: PluginCommand, environment: dict[str, str] | None = None, **options: Any
    ) -> Executor:
        options = {"pause_seconds": 0.05, **options}
        executor = WarmExecutor(command, environment or {}, self.mark, **options)
        self.executors.append(executor)
        return executor

    async def warmed(
        self, command: PluginCommand, environment: dict[str, str] | None = None, **options: Any
    ) -> Executor:
        executor = self.warm(command, environment, **options)
        await executor.start()
        return executor

    def call(self, command: PluginCommand, environment: dict[str, str] | None = None) -> PluginRun:
        """A run with its own folder."""
        self.jobs += 1
        root = self.folder / f"job-{self.jobs}"
        root.mkdir()
        return PluginRun(
            job=f"{self.mark}-{self.jobs}",
            root=root,
            argv=PLUGIN.argv(command.argv, "cpu"),
            environment=environment or {},
            log=root / "plugin.log",
            time_limit=60,
            grace=0.3,
            slot="cpu/0",
            kind="of-this-house",
        )

    async def run(
        self,
        executor: Executor,
        command: PluginCommand,
        environment: dict[str, str] | None = None,
    ) -> tuple[PluginExit, str]:
        """Run it; returns how it ended, and its log."""
        call = self.call(command, environment)
        end = await executor.run(call)
        return end, call.log.read_text()

    def parents(self) -> list[int]:
        """The living parents: marked children of this process, not the forks of a parent."""
        return [
            marked.pid
            for marked in find_marked(WORKSPACE_MARK, self.mark)
            if "warm_parent.py" in " ".join(_command_line(marked.pid))
            and psutil.Process(marked.pid).ppid() == os.getpid()
        ]


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@asynccontextmanager
async def a_house(folder: Path) -> AsyncIterator[House]:
    """A house; at the end, no process of it may be left."""
    house = House(folder, f"of-{folder.name}")
    yield house
    for executor in house.executors:
        await executor.close()
    assert find_marked(WORKSPACE_MARK, house.mark) == []


def _command_line(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []
