"""Marks: by them the processes of a run are known, whatever became of their group and server.

A mark is a variable of the environment that a process was started with. A PID alone identifies
nothing: it may have been given to another process.
"""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import psutil

JOB_MARK = "PFMS_JOB"  # the job's ID, in the environment of each process of its run
WORKSPACE_MARK = "PFMS_WORKSPACE_MARK"  # the ID of the workspace, likewise


class Marked(NamedTuple):
    """A process found by its mark.

    Attributes:
        pid: Its ID, which may be another's when it has ended.
        create_time: Seconds since 1970; tells it from such another.
        value: Of the mark.
        group: Its process group.
    """

    pid: int
    create_time: float
    value: str
    group: int


def find_marked(name: str, value: str | None = None) -> list[Marked]:
    """All processes but this one that were started with `name` (set to `value`). It blocks."""
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
    """Entries split by NUL; empty where it may not be read, and of the dead."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:  # noqa: PTH123 - 5 x quicker
            return file.read()
    except OSError:
        if Path("/proc/self/environ").exists():
            return b""
    with contextlib.suppress(psutil.Error):
        return b"\0".join(f"{k}={v}".encode() for k, v in psutil.Process(pid).environ().items())
    return b""
