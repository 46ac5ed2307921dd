"""A run in a process that the warm parent has forked for it.

Part of the program `warm_parent.py`: imports nothing of pfms.
"""

import atexit
import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pfms.programs import family, memory, warm_plugin, warm_progress, warm_stay
    from pfms.programs.warm_socket import Link
else:
    import family
    import memory
    import warm_plugin
    import warm_progress
    import warm_stay
    from warm_socket import Link

Message = dict[str, Any]

_MARK = "PFMS_JOB"  # as `marks.JOB_MARK`
_KILL_SECONDS = 1.0  # for the kernel to end a process after KILL
_DISMISSED_SECONDS = 5  # for a process that had stayed to end by itself


class EnvironmentMark:
    """The job's mark in the environment that /proc shows, which identifies a run's processes.

    For a forked child, /proc shows the environment that its parent was started with. So the parent
    is started with a mark of hyphens, and each child overwrites it, for itself and all its forks.
    """

    def __init__(self) -> None:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(after_name[47]), int(after_name[48])  # env_start and env_end
        blank = f"{_MARK}=".encode() + b"-" * len(os.environ[_MARK])
        found = ctypes.string_at(start, end - start).find(blank)
        if found < 0:
            raise RuntimeError("the environment is not where the kernel says")
        self._address = start + found + len(_MARK) + 1
        self._length = len(os.environ[_MARK])

    def write(self, value: str) -> None:
        """Set the mark to `value`."""
        text = value.encode()[: self._length]
        ctypes.memmove(self._address, text.ljust(self._length, b"\0"), self._length)


class Child:
    """This process, which was just forked.

    Args:
        server: The socket of the server.
        parent: A socket of the parent's, which brings further runs; None if there will be none.
        call: What runs the plugin.
        mark: The job's mark in the environment that /proc shows.
    """

    def __init__(
        self, server: Link, parent: Link | None, call: Callable[[], object], mark: EnvironmentMark
    ) -> None:
        self._server = server
        self._parent = parent
        self._call = call
        self._mark = mark
        self._run: int | None = None  # the number of its run
        self._turn = 0  # how many runs it has had
        self._adopts = False

    def run(self, order: Message, log: int) -> NoReturn:
        """Run the plugin as a fresh process would have done, and perhaps others after it; exit."""
        code, left = 1, ""
        try:
            self._begin_session()
            before = warm_stay.Before() if self._parent is not None else None
            code = self._run_plugin(order, log)
            if self._parent is not None and before is not None and not code:
                code = 1  # should anything below raise
                code, left = self._run_others(order, self._parent, before)
            family.end_descendants(_KILL_SECONDS, group=os.getpid())  # the group may end by itself
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            _flush()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            alone = family.end_leftovers(os.getpid())
            if code < 0:
                signal.signal(-code, signal.SIG_DFL)
                os.kill(os.getpid(), -code)
            # Sent before the exit, because the kernel takes a while to free 2 GB.
            if alone and self._adopts and self._run is not None:
                message = {"finished": self._run, "code": code, "peak": _peak(), "left": left}
                self._server.send(message)
        finally:
            os._exit(code)

    def _begin_session(self) -> None:
        os.setsid()
        self._adopts = family.adopt_orphans()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _run_plugin(self, order: Message, log: int) -> int:
        self._set_up_run(order, log)
        return warm_plugin.exit_code_of(self._call)

    def _run_others(
        self, order: Message, parent: Link, before: warm_stay.Before
    ) -> tuple[int, str]:
        """After a run that ended well, wait for others.

        Returns:
            The exit code of the last one, and why this process does not stay although it might.
        """
        code = 0
        while not code and self._adopts and self._turn < order["stay"]["runs"]:
            _flush()
            if left := before.left_by_run(order["cwd"]):
                return code, left
            self._let_go(parent)
            before.restore()
            following, log = parent.receive()
            if following is None:
                signal.alarm(_DISMISSED_SECONDS)
                break
            order = following
            code = self._run_plugin(order, log)
        return code, ""

    def _let_go(self, parent: Link) -> None:
        """Keep nothing of the run that others could see, and report its end."""
        peak = _peak()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (1, 2):
            os.dup2(nothing, number)
        os.close(nothing)
        self._mark.write("")
        os.chdir("/")
        parent.send({"peak": peak, "turn": self._turn})
        self._run = None

    def _set_up_run(self, order: Message, log: int) -> None:
        self._run = order["run"]
        self._turn += 1
        memory.limit_memory(order["memory"])
        self._mark.write(order["job"])
        for number in (1, 2):
            os.dup2(log, number)
        os.close(log)
        for name, value in order["environment"].items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        try:
            os.chdir(order["cwd"])
        except OSError as error:
            message = {"refused": self._run, "errno": error.errno, "path": order["cwd"]}
            self._server.send(message)
            os._exit(1)
        if "torch" in sys.modules and "OMP_NUM_THREADS" in order["environment"]:
            # libgomp has already read the variable, in the parent
            cores = len(os.sched_getaffinity(0))
            sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cores)))
        sys.argv = order["argv"]
        sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # noqa: PTH120
        if not self._server.send({"started": self._run, "pid": os.getpid()}):
            os._exit(1)  # the server has given up this run, and may have started it elsewhere
        warm_progress.begin(self._report_progress)

    def _report_progress(self, stage: str, done: int, total: int) -> None:
        told = {"progress": self._run, "stage": stage, "done": done, "total": total}
        self._server.send(told, wait=False)


def _flush() -> None:
    ctypes.CDLL(None).fflush(None)
    sys.stdout.flush()
    sys.stderr.flush()


def _peak() -> int:
    """Of this process and its descendants."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return memory.peak_memory(*map(resource.getrusage, both))
