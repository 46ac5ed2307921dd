"""Ends a run's processes: TERM to the group, a grace period, KILL; then whatever left the group."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from typing import Protocol

import psutil

from pfms.aio import in_own_thread
from pfms.processes.marks import JOB_MARK, Marked, find_marked

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.02
_KILL_SECONDS = 1.0  # for the kernel to end a process after KILL
_LEFTOVER_SECONDS = 0.2  # between TERM and KILL for what an ended run left behind


class Child(Protocol):
    """A process that leads its own group: asyncio's `Process`, or one forked by another process."""

    @property
    def pid(self) -> int:
        """The ID of the process and of its group."""

    @property
    def returncode(self) -> int | None:
        """Negative if a signal ended it; None while it runs."""

    async def wait(self) -> int:
        """Wait until it has ended, for its return code; may raise `ChildLost`.

        Its parent reaps it. The kernel may still be freeing its memory then: this takes 0.2 seconds
        for the plugin's 2 GB.
        """


class ChildLost(Exception):
    """The process's parent, which would have reaped it, is gone."""


async def end_run(process: Child | None, job: str, grace: float) -> None:
    """End every process that is left of a run."""
    if process is not None:
        if process.returncode is None:
            await in_own_thread(_end_group, process.pid, grace)
        else:
            await in_own_thread(_end_group, process.pid, _LEFTOVER_SECONDS, process.pid)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_SECONDS):
                with contextlib.suppress(ChildLost):
                    await process.wait()
                await in_own_thread(_reap_adopted, process.pid)
    await end_marked(JOB_MARK, job)


def _end_group(group: int, grace: float, ended: int | None = None) -> None:
    """End a whole group; `ended` is a process of it that is known to have ended."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, _KILL_SECONDS)):
        try:
            os.killpg(group, number)  # all at once, so that none can escape by forking
        except ProcessLookupError:
            return
        except PermissionError:
            log.error("process group %d now belongs to another user", group)
            return
        until = time.monotonic() + seconds
        while _group_is_alive(group, ended) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
    if _group_is_alive(group, ended):
        log.error("process group %d does not end: it is stuck in the kernel", group)


def _reap_adopted(group: int) -> None:
    """If we are a container's PID 1, reap the orphans of a group that was ended."""
    until = time.monotonic() + _KILL_SECONDS
    with contextlib.suppress(ChildProcessError):  # there are none, or no more
        while os.waitpid(-group, os.WNOHANG)[0] or time.monotonic() < until:
            time.sleep(_POLL_SECONDS)


def _group_is_alive(group: int, ended: int | None) -> bool:
    """Whether the group has living processes, apart from the one that has ended.

    A process that forks all the time may be missed by this scan, but KILL ends it.
    """
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    # `killpg` also finds dead processes not yet reaped; a container's PID 1 may never reap them.
    return any(_is_alive(pid) for pid in psutil.pids() if pid != ended and _group_of(pid) == group)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


async def end_marked(name: str, value: str) -> int:
    """Kill all processes that were started with `name` set to `value`; returns how many."""
    return await in_own_thread(_kill_marked, name, value)


def _kill_marked(name: str, value: str) -> int:
    killed: set[Marked] = set()
    until = time.monotonic() + _KILL_SECONDS
    while found := find_marked(name, value):
        if time.monotonic() > until:
            log.error("processes %s do not end", [marked.pid for marked in found])
            break
        for marked in found:
            _kill(marked)
        killed.update(found)
        time.sleep(_POLL_SECONDS)
    for group in {marked.group for marked in killed} - {os.getpgid(0)}:
        _reap_adopted(group)
    return len(killed)


def _kill(marked: Marked) -> None:
    if marked.group != os.getpgid(0):  # each run has a session, so it shares no group with others
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # all at once: one by one, they could fork faster than they are found
            os.killpg(marked.group, signal.SIGKILL)
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(marked.pid)
        if process.create_time() == marked.create_time:
            process.kill()
