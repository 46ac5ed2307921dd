"""Finds and ends every process that descends from this one, whatever it did to get away.

On Linux a process can adopt the orphans among its descendants (a subreaper). A daemon that begins a
session of its own and empties its environment then still is a descendant of its run.

Used by the programs beside it; it imports nothing of pfms.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.01


def adopt_orphans() -> bool:
    """Become the parent of each descendant whose own parent ends; returns whether that worked."""
    try:
        return not ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except AttributeError:  # not Linux
        return False


def descendants(but: Collection[int] = ()) -> list[tuple[int, int]]:
    """The process ID and the group of each living descendant, without `but` and what is below."""
    below: dict[int, list[tuple[int, int, bool]]] = {}
    with contextlib.suppress(FileNotFoundError):  # no /proc: not Linux
        for name in os.listdir("/proc"):  # noqa: PTH208 - keepers import little
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    state, parent, of = file.read().rpartition(b")")[2].split()[:3]
                    living = state not in (b"Z", b"X")
                    below.setdefault(int(parent), []).append((int(name), int(of), living))
    found, parents = [], [os.getpid()]
    while parents:
        for pid, group, living in below.get(parents.pop(), ()):
            if pid not in but:
                parents.append(pid)
                if living:
                    found.append((pid, group))
    return found


def end_descendants(seconds: float, but: Collection[int] = (), group: int = 0) -> None:
    """Kill the descendants, again and again until there are none, for at most `seconds`.

    Args:
        seconds: After this, what is left is stuck in the kernel.
        but: Processes to leave alone, with everything below them.
        group: A process group to leave alone.
    """
    until = time.monotonic() + seconds
    while found := [one for one in descendants(but) if one[1] != group]:
        for pid, of in found:
            with contextlib.suppress(OSError):
                if of not in (os.getpgid(0), *but):
                    os.killpg(of, signal.SIGKILL)  # at once: they could fork faster than we look
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            break
        time.sleep(_POLL_SECONDS)
