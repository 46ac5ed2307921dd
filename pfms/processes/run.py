"""One process group: start it, end all of it: TERM, a grace period, KILL.

Each run begins a session, and so a group. What leaves the group is found as a descendant of the
run's keeper (`programs/keeper.py`); what outlived both, by the marks in its environment.
"""

import asyncio
import errno
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pfms.aio import to_the_end
from pfms.plugin.python_settings import NOT_FOR_RUNS
from pfms.plugin.types import PluginExit
from pfms.processes.kill import Child, ChildLost, end_run
from pfms.processes.marks import JOB_MARK
from pfms.programs import KEEPER

_KEEPER_SECONDS = 3.0  # for a keeper, beyond the grace, to kill everything and to end
# The machine could not start one more process or open one more file: not the run's fault.
_NO_RESOURCES = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
# A service manager that stops us signals all our processes at once: not the run's fault either.
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class RunChild(Child, Protocol):
    """A run: by its keeper, or a forked one."""

    @property
    def peak_memory(self) -> int | None:
        """The most bytes that a process of it held; None until it has ended, or if unknown."""

    @property
    def alone(self) -> bool:
        """Whether it has ended, and all that it had started is known to have ended."""


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The server's environment, without what is meant only for the server, plus `extra`."""
    own = {
        name: value
        for name, value in os.environ.items()
        # Ray's token is among its variables.
        if not name.startswith(("PFMS_", "RAY_")) and name not in NOT_FOR_RUNS
    }
    if "PYTHONPATH" in own:
        own["PYTHONPATH"] = _absolute(own["PYTHONPATH"])
    return {**own, **extra}


def _absolute(folders: str) -> str:
    """Make the folders absolute, so that they mean the same wherever a child is started."""
    try:
        kept = [os.path.abspath(folder) for folder in folders.split(os.pathsep) if folder]  # noqa: PTH100
    except FileNotFoundError:  # the server's own folder is gone
        return folders
    return os.pathsep.join(kept)


async def run_in_group(
    argv: Sequence[str],
    *,
    job: str,
    cwd: Path,
    environment: Mapping[str, str],
    output: int,
    time_limit: float,
    grace: float,
    max_memory: int = 0,
) -> PluginExit:
    """Run a program to its end, in its own process group.

    When this returns or raises, no process is left that is in the group or carries the job's mark.
    That is at most `grace` and about a second after the time limit or the cancellation, however
    often the task is cancelled.

    Args:
        argv: The command line.
        job: The job's ID, for the mark.
        cwd: The working directory.
        environment: What to set on top of `child_environment`.
        output: The descriptor for stdout and stderr; stdin is empty.
        time_limit: Seconds from the start.
        grace: Seconds between TERM and KILL.
        max_memory: Bytes for each of its processes; 0 sets no limit.

    Raises:
        asyncio.CancelledError: The task was cancelled.
    """
    return await run_child(
        _spawn(argv, cwd, {**environment, JOB_MARK: job}, output, grace, max_memory),
        job=job,
        command=argv[0],
        cwd=cwd,
        time_limit=time_limit,
        grace=grace + _KEEPER_SECONDS,
    )


async def run_child(
    spawning: Awaitable[RunChild | OSError],
    *,
    job: str,
    command: str,
    cwd: Path,
    time_limit: float,
    grace: float,
) -> PluginExit:
    """Keep the promises of `run_in_group` for a process that `spawning` starts.

    Args:
        spawning: Returns the process, or the error that prevented it; may raise. Never cancelled.
        job: The job's ID, which marks the process.
        command: The program's name, for messages.
        cwd: The working directory, for messages.
        time_limit: Seconds from the start.
        grace: Seconds between TERM and KILL.
    """
    started = time.monotonic()
    timed_out, lost = False, ""
    spawn = asyncio.ensure_future(spawning)
    try:
        process = await to_the_end(spawn)
        if isinstance(process, OSError):
            return _not_started(process, command, cwd, time.monotonic() - started)
        try:
            async with asyncio.timeout(time_limit - (time.monotonic() - started)):
                await process.wait()
        except TimeoutError:
            timed_out = True
    except ChildLost as error:
        lost = str(error)
    finally:
        child = _child_of(spawn)
        if child is None or not child.alone:
            await to_the_end(end_run(child, job, grace))
    seconds = time.monotonic() - started
    if lost or child is None:
        return PluginExit(None, None, seconds, "executor", lost)
    return _ended(child.returncode, timed_out, seconds, child.peak_memory)


class KeptChild:
    """A run by its keeper, as `RunChild`."""

    def __init__(self, keeper: Process) -> None:
        self._keeper = keeper
        self.pid = keeper.pid
        self.peak_memory: int | None = None
        self.alone = False

    @property
    def returncode(self) -> int | None:
        """The keeper ends as its run did."""
        return self._keeper.returncode

    async def wait(self) -> int:
        """Wait until it has ended, for its return code."""
        code = await self._keeper.wait()
        if end := await self.told():
            self.peak_memory, self.alone = json.loads(end)
        return code

    async def told(self) -> bytes:
        """The next line of the keeper; empty if it has ended."""
        return await self._keeper.stdout.readline() if self._keeper.stdout else b""


async def _spawn(
    argv: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    output: int,
    grace: float,
    max_memory: int,
) -> RunChild | OSError:
    """The keeper of the process, which ends as it does, or the error that prevented it."""
    keeper = (sys.executable, "-I", "-S", str(KEEPER), str(output), str(grace), str(max_memory))
    try:
        process = await asyncio.create_subprocess_exec(
            *keeper,
            *argv,
            cwd=cwd,
            env=child_environment(environment),
            stdin=PIPE,  # ends with this process, whatever happens to it
            stdout=PIPE,
            pass_fds=[output],
            start_new_session=True,
            umask=0o007,  # the same as the server's
        )
    except OSError as error:
        return error
    child = KeptChild(process)
    problem = json.loads(await child.told() or "null")
    if problem is None:
        return child
    await process.wait()
    number, file = problem
    return OSError(number, os.strerror(number), file)


def _child_of(spawn: asyncio.Future[RunChild | OSError]) -> RunChild | None:
    if spawn.cancelled() or spawn.exception() is not None:
        return None
    return None if isinstance(child := spawn.result(), OSError) else child


def _not_started(error: OSError, command: str, cwd: Path, seconds: float) -> PluginExit:
    name = Path(command).name
    if isinstance(error, FileNotFoundError) and str(error.filename) == str(cwd):
        message = "The job's folder is not there."
    elif isinstance(error, FileNotFoundError):
        message = f"'{name}', or the interpreter that its first line names, is not there."
    elif isinstance(error, PermissionError):
        message = f"'{name}' may not be executed."
    else:
        message = f"'{name}' could not be started: {error.strerror}."
    return PluginExit(
        code=None,
        signal=None,
        seconds=seconds,
        ended_by="executor" if error.errno in _NO_RESOURCES else "not-started",
        message=message,
    )


def _ended(
    returncode: int | None, timed_out: bool, seconds: float, peak_memory: int | None
) -> PluginExit:
    code = -signal.SIGKILL if returncode is None else returncode  # None: stuck in the kernel
    number = -code if code < 0 else None
    stopped = not timed_out and number in _STOP_SIGNALS
    return PluginExit(
        code=None if number else code,
        signal=number,
        seconds=seconds,
        ended_by="time-limit" if timed_out else "executor" if stopped else "itself",
        message="The plugin was stopped by something outside pfms." if stopped else "",
        peak_memory=peak_memory,
    )
