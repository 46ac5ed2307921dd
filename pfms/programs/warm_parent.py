"""A separate program that imports the plugin once and forks a child for each run.

`warm_link.py` starts it with the plugin's Python and talks to it over one socket (SOCK_SEQPACKET,
so that parent and children can all send), with one JSON object per packet:

    to it    {entry_point, script, package, adaptations, grace}   once, at the start
             {run, job, argv, cwd, environment, memory, stay}   and with it the log's descriptor;
                                             `stay` is null, or as in `warm_kept.py`
    from it  {ready, watch, lacking} or {failed}; then for each run, by its number
             {started, pid}                  from the child, once it leads its own session
             {progress, stage, done, total}  from the child
             {finished, code, peak, left}    from the child, when it has only to exit; `left` is
                                             why it does not stay, although it might
             {kept, peak, turn}              the run ended with code 0, and its process, whose run
                                             number `turn` it was, stays for another
             {refused, errno, path}          it could not be forked, or not enter its folder
             {ended, pid, status, peak, alone}   `status` as from waitpid

`peak` is the most bytes of memory that one process of the run held. `alone` says whether all that
it had started has ended; that is so before `finished` or `kept` is sent.

It imports nothing of pfms, starts no thread, runs no torch computation (OpenMP threads do not
survive a fork) and never uses CUDA. When the socket closes, it ends, with its children.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfms.programs import family, memory, warm_kept, warm_plugin
    from pfms.programs.warm_child import Child, EnvironmentMark
    from pfms.programs.warm_socket import Link
else:  # it is beside this file, where Python may have been told not to look
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    import family
    import memory
    import warm_kept
    import warm_plugin
    from warm_child import Child, EnvironmentMark
    from warm_socket import Link

Message = dict[str, Any]

_KILL_SECONDS = 1.0  # for the kernel to end a process after KILL


class Parent:
    """Forks and reaps children, and ends them when it ends."""

    def __init__(self, link: Link, call: Callable[[], object], grace: float, adopts: bool) -> None:
        self._link = link
        self._adopts = adopts
        self._call = call
        self._grace = grace
        self._mark = EnvironmentMark()
        self._running: dict[int, int | None] = {}  # each child's run; None if it waits for one
        self._kept = warm_kept.Kept()
        self._own = {pid for pid, _ in family.descendants()}  # the plugin's imports started them

    def serve(self) -> None:
        """Serve until the socket closes."""
        wakes, waker = socket.socketpair()
        wakes.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            sources: list[Any] = [self._link.fileno(), wakes.fileno(), *self._kept.links()]
            readable, _, _ = select.select(sources, [], [], self._kept.seconds_left())
            for pid, said in self._kept.ended_well(readable):
                self._link.send({"kept": self._running[pid], **said})
                self._running[pid] = None
            self._kept.dismiss_idle()
            if wakes.fileno() in readable:
                wakes.recv(4096)
                self._reap()
            if self._link.fileno() in readable:
                order, log = self._link.receive()
                if order is None:
                    self._end_all()
                    return
                if order["stay"] and (pid := self._kept.take(order, log)):
                    self._running[pid] = order["run"]
                    os.close(log)
                else:
                    self._fork(order, log)

    def _fork(self, order: Message, log: int) -> None:
        pair = None
        try:
            if order["stay"]:
                pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
        except OSError as error:
            self._link.send({"refused": order["run"], "errno": error.errno, "path": None})
            self._link.send(
                {"ended": order["run"], "pid": 0, "status": 0, "peak": None, "alone": True}
            )
        else:
            if not pid:
                self._kept.close()
                if pair is not None:
                    pair[0].close()
                parent = Link(pair[1]) if pair is not None else None
                Child(self._link, parent, self._call, self._mark).run(order, log)
            self._running[pid] = order["run"]
            if pair is not None:
                pair[1].close()
                self._kept.add(pid, pair[0], order["stay"])
        os.close(log)

    def _reap(self) -> None:
        ended: list[Message] = []
        with contextlib.suppress(ChildProcessError):
            while (dead := os.wait4(-1, os.WNOHANG))[0]:
                pid, status, usage = dead
                run = self._running.pop(pid, None)
                self._kept.forget(pid)
                if run is not None:  # otherwise it was adopted, an import started it, or it waited
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
        call, lacking = warm_plugin.load(order)
        parent = Parent(link, call, order["grace"], adopts)
    except BaseException as error:
        traceback.print_exc()
        last = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        link.send({"failed": last[:1000]})
        sys.exit(1)
    # Python 3.12 warns about threads: these are OpenBLAS's, which handle a fork themselves.
    warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
    gc.collect()
    gc.freeze()  # so that garbage collection in the children leaves our pages shared
    watch = warm_plugin.watched(order["package"])
    link.send({"ready": True, "watch": watch, "lacking": lacking})
    parent.serve()


if __name__ == "__main__":
    main()
