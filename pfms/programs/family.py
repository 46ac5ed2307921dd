"""Finds and ends every process that descends from this one, whatever it did to get away.

On Linux a process can adopt the orphans among its descendants (a subreaper). A daemon that begins a
session of its own and empties its environment then still is a descendant of its run. The kernel
lists the children of a process, so looking costs nothing where there are none, however many
processes the machine has.

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
_LEFTOVER_SECONDS = 0.2  # between TERM and KILL for what an ended run left in its group
_KILL_SECONDS = 1.0  # for the kernel to end a process after KILL


def adopt_orphans() -> bool:
    """Become the parent of each descendant whose own parent ends; returns whether that worked."""
    try:
        return not ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except AttributeError:  # not Linux
        return False


def descendants(but: Collection[int] = ()) -> list[tuple[int, int]]:
    """The process ID and the group of each descendant, without `but` and what is below.

    Those that have ended and that nobody has waited for are among them.
    """
    listed = os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # noqa: PTH110
    below = {} if listed else _all_children()
    found, parents = [], [os.getpid()]
    while parents:
        parent = parents.pop()
        for pid in _children(parent) if listed else below.get(parent, ()):
            if pid not in but:
                parents.append(pid)
                with contextlib.suppress(OSError):
                    found.append((pid, os.getpgid(pid)))
    return found


def _children(pid: int) -> list[int]:
    """Of all its threads; empty if it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - keepers import little
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{pid}/task/{thread}/children", "rb") as file,  # noqa: PTH123
            ):
                found += map(int, file.read().split())
    return found


def _all_children() -> dict[int, list[int]]:
    """The children of every process of the machine, where the kernel does not list them by parent.

    Empty without /proc: not Linux.
    """
    below: dict[int, list[int]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):  # noqa: PTH208
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    parent = int(file.read().rpartition(b")")[2].split()[1])
                    below.setdefault(parent, []).append(int(name))
    return below


def end_leftovers(group: int) -> bool:
    """End what a run has left: TERM for its group, a moment later KILL for every descendant.

    Args:
        group: The run's process group. If this process is in it, it must ignore TERM.

    Returns:
        Whether there is none left.
    """
    until = time.monotonic() + _LEFTOVER_SECONDS
    asked = False
    while any(of == group for _, of in _undead()) and time.monotonic() < until:
        if not asked:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGTERM)
            asked = True
        else:
            time.sleep(_POLL_SECONDS)
    return end_descendants(_KILL_SECONDS)


def end_descendants(seconds: float, but: Collection[int] = (), group: int = 0) -> bool:
    """Kill the descendants, again and again until there are none, for at most `seconds`.

    Args:
        seconds: After this, what is left is stuck in the kernel.
        but: Processes to leave alone, with everything below them.
        group: A process group to leave alone.

    Returns:
        Whether there is none left.
    """
    until = time.monotonic() + seconds
    own = os.getpgid(0)
    while found := [one for one in _undead(but) if one[1] != group]:
        for pid, of in found:
            with contextlib.suppress(OSError):
                if of not in (own, *but):
                    os.killpg(of, signal.SIGKILL)  # at once: they could fork faster than we look
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _undead(but: Collection[int] = ()) -> list[tuple[int, int]]:
    """The descendants, after those that have ended were waited for.

    An ended one counts until then: its children become ours while it ends.
    """
    found = descendants(but)
    ended = 0
    for pid, _ in found:
        with contextlib.suppress(OSError):  # not a child of this process, but further below
            ended += os.waitpid(pid, os.WNOHANG)[0] > 0
    return descendants(but) if ended else found
