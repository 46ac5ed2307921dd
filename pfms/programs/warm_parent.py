"""A separate program that imports the plugin once and forks a child for each run.

`warm_link.py` starts it with the plugin's Python and talks to it over one socket (SOCK_SEQPACKET,
so that parent and children can all send), with one JSON object per packet:

    to it    {entry_point, script, package, adaptations, grace}   once, at the start
             {run, job, argv, cwd, environment, memory}   and with it the log's file descriptor
    from it  {ready, watch} or {failed}; then for each run, by its number
             {started, pid}                  from the child, once it leads its own session
             {progress, stage, done, total}  from the child
             {finished, code, peak}          from the child, when it has only to exit
             {refused, errno, path}          it could not be forked, or not enter its folder
             {ended, pid, status, peak, alone}   `status` as from waitpid

`peak` is the most bytes of memory that one process of the run held. `alone` says whether all that
it had started has ended; that is so before `finished` is sent.

It imports nothing of pfms, starts no thread, runs no torch computation (OpenMP threads do not
survive a fork) and never uses CUDA. When the socket closes, it ends, with its children.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pfms.programs import family, memory, warm_plugin, warm_progress
else:  # it is beside this file, where Python may have been told not to look
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    import family
    import memory
    import warm_plugin
    import warm_progress

Message = dict[str, Any]

_PACKET = 1 << 20  # bytes; more than a socket takes
_MARK = "PFMS_JOB"  # as `marks.JOB_MARK`
_KILL_SECONDS = 1.0  # for the kernel to end a process after KILL


class Link:
    """The socket, shared with the children."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.fileno = sock.fileno

    def send(self, message: Message, *, wait: bool = True) -> bool:
        """Send a message, or without `wait` only if there is room; returns whether it was sent."""
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            self._sock.send(json.dumps(message).encode(), flags)
        except (ConnectionError, BlockingIOError):
            return False
        return True

    def receive(self) -> tuple[Message | None, int]:
        """The next message, or None at the end; and the descriptor that came with it, or -1."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._sock, _PACKET, 1)
        except ConnectionError:
            data, descriptors = b"", []
        return json.loads(data) if data else None, descriptors[0] if descriptors else -1


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


# --- the parent --------------------------------------------------------------------------------


class Parent:
    """Forks and reaps children, and ends them when it ends."""

    def __init__(self, link: Link, call: Callable[[], object], grace: float, adopts: bool) -> None:
        self._link = link
        self._adopts = adopts
        self._call = call
        self._grace = grace
        self._mark = EnvironmentMark()
        self._running: dict[int, int] = {}
        self._own = {pid for pid, _ in family.descendants()}  # the plugin's imports started them
        self._run = 0  # in a child: the number of its run

    def serve(self) -> None:
        """Serve until the socket closes."""
        wakes, waker = socket.socketpair()
        wakes.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            readable, _, _ = select.select([self._link.fileno(), wakes.fileno()], [], [])
            if wakes.fileno() in readable:
                wakes.recv(4096)
                self._reap()
            if self._link.fileno() in readable:
                order, log = self._link.receive()
                if order is None:
                    self._end_all()
                    return
                self._fork(order, log)

    def _fork(self, order: Message, log: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._link.send({"refused": order["run"], "errno": error.errno, "path": None})
            self._link.send(
                {"ended": order["run"], "pid": 0, "status": 0, "peak": None, "alone": True}
            )
        else:
            if not pid:
                self._run_in_child(order, log)
            self._running[pid] = order["run"]
        os.close(log)

    def _reap(self) -> None:
        ended: list[Message] = []
        with contextlib.suppress(ChildProcessError):
            while (dead := os.wait4(-1, os.WNOHANG))[0]:
                pid, status, usage = dead
                run = self._running.pop(pid, None)
                if run is not None:  # otherwise it was adopted, or an import started it
                    peak = memory.peak_memory(usage)
                    ended.append({"ended": run, "pid": pid, "status": status, "peak": peak})
        # A run keeps its orphans for as long as it lives: what is ours now is left of ended ones.
        alone = family.end_descendants(_KILL_SECONDS, but=(*self._running, *self._own))
        for message in ended:
            self._link.send({**message, "alone": alone and self._adopts})

    def _end_all(self) -> None:
        for number, seconds in ((signal.SIGTERM, self._grace), (signal.SIGKILL, _KILL_SECONDS)):
            for pid in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, number)
            until = time.monotonic() + seconds
            while self._running and time.monotonic() < until:
                time.sleep(0.02)
                self._reap()

    # --- in the child --------------------------------------------------------------------------

    def _run_in_child(self, order: Message, log: int) -> NoReturn:
        """Run the plugin as a fresh process would have done."""
        code = 1
        try:
            self._set_up_run(order, log)
            code = warm_plugin.exit_code_of(self._call)
            family.end_descendants(_KILL_SECONDS, group=os.getpid())  # the group may end by itself
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            ctypes.CDLL(None).fflush(None)
            sys.stdout.flush()
            sys.stderr.flush()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            alone = family.end_leftovers(os.getpid())
            if code < 0:
                signal.signal(-code, signal.SIG_DFL)
                os.kill(os.getpid(), -code)
            # Sent before the exit, because the kernel takes a while to free 2 GB.
            if alone and self._adopts:
                self._link.send({"finished": self._run, "code": code, "peak": _peak()})
        finally:
            os._exit(code)

    def _set_up_run(self, order: Message, log: int) -> None:
        self._run = order["run"]
        os.setsid()
        self._adopts = family.adopt_orphans()
        memory.limit_memory(order["memory"])
        self._mark.write(order["job"])
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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
            self._link.send(message)
            os._exit(1)
        if "torch" in sys.modules and "OMP_NUM_THREADS" in order["environment"]:
            # libgomp has already read the variable, in the parent
            cores = len(os.sched_getaffinity(0))
            sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cores)))
        sys.argv = order["argv"]
        sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))  # noqa: PTH120
        if not self._link.send({"started": self._run, "pid": os.getpid()}):
            os._exit(1)  # the server has given up this run, and may have started it elsewhere
        warm_progress.begin(self._report_progress)

    def _report_progress(self, stage: str, done: int, total: int) -> None:
        told = {"progress": self._run, "stage": stage, "done": done, "total": total}
        self._link.send(told, wait=False)


def _peak() -> int:
    """Of this process and its descendants."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return memory.peak_memory(*map(resource.getrusage, both))


def main() -> None:
    """Load the plugin, report that, serve."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [folder for folder in sys.path if folder != here]
    for name in ("family", "memory", *(name for name in sys.modules if name.startswith("warm_"))):
        sys.modules.pop(name)  # the plugin must not find our modules, by path or by name
    os.umask(0o007)
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    order, _ = link.receive()
    if order is None:
        return
    adopts = family.adopt_orphans()
    try:
        parent = Parent(link, warm_plugin.load(order), order["grace"], adopts)
    except BaseException as error:
        traceback.print_exc()
        last = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        link.send({"failed": last[:1000]})
        sys.exit(1)
    # Python 3.12 warns about threads: these are OpenBLAS's, which handle a fork themselves.
    warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
    gc.collect()
    gc.freeze()  # so that garbage collection in the children leaves our pages shared
    link.send({"ready": True, "watch": warm_plugin.watched(order["package"])})
    parent.serve()


if __name__ == "__main__":
    main()
