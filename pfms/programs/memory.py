"""Bounds the memory of this process and of what it starts, and tells what it took.

Used by the programs beside it; it imports nothing of pfms.
"""

import contextlib
import resource
import sys

_OFTEN_KILLED = "500"  # of 1000: before the server and other services, after the check of weights


def limit_memory(most: int) -> None:
    """Refuse this process more than `most` bytes of data; 0 only raises its place on the list.

    The limit is not RLIMIT_AS, because torch and CUDA map far more than they ever use.
    """
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write(_OFTEN_KILLED)
    if most:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def peak_memory(*usages: resource.struct_rusage) -> int:
    """The most bytes of memory that a process held at a time, of those that the usages are of.

    These are its resident pages: those that it shares with others, such as the process that it was
    forked from, are among them.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(usage.ru_maxrss for usage in usages)
