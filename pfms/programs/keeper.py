"""A separate program that starts a run, and ends everything that the run has started.

    python -I -S keeper.py OUTPUT GRACE MEMORY COMMAND ARGUMENT...

OUTPUT is the descriptor for the run's stdout and stderr; MEMORY the most bytes for each of its
processes, or 0. It ends as the run ended: with the same
exit code, or by the same signal. On TERM it asks the run to end, and kills it after GRACE seconds;
when its own stdin ends, because the server has died, it kills the run at once. stdout gets lines of
JSON: null if the run has started, or else the number of the error and the file; when the run has
ended, the most bytes of memory that one of its processes held, and whether all of them have ended.

It is small, because it exists as long as the run; it imports nothing of pfms, and little else,
because that is most of what its start takes.
"""

import contextlib
import errno
import os
import resource
import select
import signal
import sys
import time
from types import FrameType

TYPE_CHECKING = False  # as in `typing`, which takes long to import
if TYPE_CHECKING:
    from pfms.programs.family import adopt_orphans, end_leftovers
    from pfms.programs.memory import limit_memory, peak_memory
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    from family import adopt_orphans, end_leftovers
    from memory import limit_memory, peak_memory

_KILL_SECONDS = 1.0  # for the kernel to end a process after KILL
_ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Keeper:
    """Waits for a run, and ends it when asked to."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._asked = False
        self._wakes, waker = os.pipe()
        os.set_blocking(self._wakes, False)
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in _ASKED:
            signal.signal(number, self._note)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def wait(self, run: int) -> int:
        """Wait for the end of a run, for its status."""
        poll = select.poll()
        poll.register(self._wakes, select.POLLIN)
        poll.register(sys.stdin.fileno(), select.POLLIN)
        kill_at = give_up_at = float("inf")
        while (status := _reap(run)) is None:
            now = time.monotonic()
            if self._asked:
                self._asked = False
                _signal(run, signal.SIGTERM)
                kill_at = min(kill_at, now + self._grace)
            if now >= kill_at:
                _signal(run, signal.SIGKILL)
                kill_at, give_up_at = float("inf"), now + _KILL_SECONDS
            if now >= give_up_at:
                return signal.SIGKILL  # it is stuck in the kernel
            left = min(kill_at, give_up_at) - now
            ready = poll.poll(None if left == float("inf") else left * 1000 + 1)
            if self._wakes in [fd for fd, _ in ready]:
                os.read(self._wakes, 4096)
            if sys.stdin.fileno() in [fd for fd, _ in ready]:  # the server has died
                poll.unregister(sys.stdin.fileno())
                kill_at = now
        return status


def _reap(run: int) -> int | None:
    """Reap all dead children; the status of the run if it was among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (dead := os.waitpid(-1, os.WNOHANG))[0]:
            if dead[0] == run:
                found = dead[1]
    return found


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def main(output: int, grace: float, memory: int, argv: list[str]) -> int:
    """Start the run and wait for it; returns its status, as from waitpid."""
    keeper = Keeper(grace)
    adopts = adopt_orphans()
    limit_memory(memory)
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        run = os.posix_spawnp(
            argv[0],
            argv,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
                (os.POSIX_SPAWN_CLOSE, output),
            ],
            setsid=True,
            setsigdef=[*_ASKED, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ],
        )
    except OSError as error:
        import json

        _tell(json.dumps([error.errno or errno.EIO, argv[0]]))
        return 0
    _tell("null")
    os.close(output)
    status = keeper.wait(run)
    alone = end_leftovers(run) and adopts
    peak = peak_memory(resource.getrusage(resource.RUSAGE_CHILDREN))
    _tell(f"[{peak}, {'true' if alone else 'false'}]")
    return status


def _tell(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the server has died
        os.write(1, line.encode() + b"\n")


if __name__ == "__main__":
    output, grace, memory, *argv = sys.argv[1:]
    code = os.waitstatus_to_exitcode(main(int(output), float(grace), int(memory), argv))
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
