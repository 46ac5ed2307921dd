"""Marks identify the processes of a run, even if they left their group or outlived their server.

A mark is a variable in the environment that a process was started with. A PID alone is not enough:
it may have been reused.
"""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import psutil

JOB_MARK = "PFMS_JOB"  # the job's ID
WORKSPACE_MARK = "PFMS_WORKSPACE_MARK"  # the ID of the workspace (`Workspace.mark`)


class Marked(NamedTuple):
    """A process found by its mark.

    Attributes:
        pid: Its ID, which may be reused after it has ended.
        create_time: Seconds since 1970; tells it from a later process with the same ID.
        value: The value of the mark.
        group: Its process group.
    """

    pid: int
    create_time: float
    value: str
    group: int


def find_marked(name: str, value: str | None = None) -> list[Marked]:
    """All other processes that were started with `name` (set to `value`, if given). Blocking."""
    found = []
    prefix = f"{name}=".encode()
    for pid in psutil.pids():
        if pid == os.getpid():
            continue
        for entry in _environment_of(pid).split(b"\0"):
            if entry.startswith(prefix):
                text = entry.removeprefix(prefix).decode(errors="replace")
                if value in (None, text):
                    with contextlib.suppress(psutil.Error, ProcessLookupError):
                        created = psutil.Process(pid).create_time()
                        found.append(Marked(pid, created, text, os.getpgid(pid)))
                break
    return found


def _environment_of(pid: int) -> bytes:
    """The entries, separated by NUL; empty if it cannot be read or the process is dead."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:  # noqa: PTH123 - 5 x faster
            return file.read()
    except OSError:
        if Path("/proc/self/environ").exists():
            return b""
    with contextlib.suppress(psutil.Error):
        return b"\0".join(f"{k}={v}".encode() for k, v in psutil.Process(pid).environ().items())
    return b""
