"""The server's side of a warm parent: start it, have it fork a run, learn how the run ends."""

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any, Self

import psutil

from pfms.executors.relay import Relay
from pfms.plugin.types import PluginRun, Progress
from pfms.plugin.verdict import how_it_ended
from pfms.processes.kill import ChildLost
from pfms.processes.marks import JOB_MARK
from pfms.processes.run import RunChild, child_environment
from pfms.programs import WARM_PARENT

log = logging.getLogger(__name__)

_BLANK_MARK = "-" * 128  # room for a job's ID
_PACKET = 1 << 20  # bytes; more than a socket takes
_FORK_SECONDS = 20.0  # until a forked child reports; this usually takes milliseconds
_GOODBYE_SECONDS = 5.0  # for a parent to end by itself
_GROWTH = 1.5  # a parent is replaced when its memory has grown by this factor
_LOST = "the process that held the plugin ready is gone"


class ParentFailed(Exception):
    """The parent did not come up; the message says why, in one line."""


class ForkedChild:
    """A run's process, as `run.RunChild`."""

    def __init__(self, job: str, on_progress: Callable[[Progress], None]) -> None:
        loop = asyncio.get_running_loop()
        self.job = job
        self.pid = 0
        self.returncode: int | None = None
        self.peak_memory: int | None = None
        self.alone = False
        self.never_began = False
        self.started: asyncio.Future[OSError | None] = loop.create_future()
        self.on_progress = on_progress
        self._ended: asyncio.Future[int] = loop.create_future()

    async def wait(self) -> int:
        """Wait until it has ended, for its return code; raises `ChildLost` if its parent dies."""
        return await asyncio.shield(self._ended)

    def set_ended(self, pid: int, returncode: int, peak_memory: int | None, *, alone: bool) -> None:
        """Note that it has ended; only the first report counts."""
        if self._ended.done():
            return
        self.pid = pid
        self.returncode = returncode
        self.peak_memory = peak_memory
        self.alone = alone
        self._ended.set_result(returncode)
        if not self.started.done():
            self.never_began = True
            self.started.set_result(None)

    def set_lost(self) -> None:
        """Note that its parent is gone, so that its return code will never be known."""
        for future in (self.started, self._ended):
            if not future.done():
                future.set_exception(ChildLost(_LOST))
                future.exception()  # marks it as retrieved: perhaps nobody is waiting


class WarmParent:
    """A running `warm_parent.py`. Made by `start`."""

    def __init__(
        self, process: Process, sock: socket.socket, relay: Relay, environment: Mapping[str, str]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.gone = asyncio.ensure_future(process.wait())
        self.retired: asyncio.Future[None] = loop.create_future()  # gone, or told to retire
        self._process = process
        self._sock = sock
        self._relay = relay
        self._environment = environment
        self._children: dict[int, ForkedChild] = {}
        self._numbers = count()
        self._idle = asyncio.Event()
        self._idle.set()
        self._ready: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._watched: dict[str, int | None] = {}
        self._memory = 0
        self.gone.add_done_callback(lambda _: self._on_exit())
        loop.add_reader(sock, self._on_readable)

    @classmethod
    async def start(
        cls,
        interpreter: str,
        environment: Mapping[str, str],
        order: Mapping[str, Any],
        seconds: float,
    ) -> Self:
        """Start a parent and wait until it has imported the plugin.

        Args:
            interpreter: The Python that has the plugin.
            environment: What to set on top of `child_environment`.
            order: The first message to it: see `warm_parent.py`.
            seconds: The time limit.

        Raises:
            ParentFailed: It did not come up, or not in time.
        """
        begun = time.time()
        relay = Relay()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            relay.close_child_end()
            relay.close()
            raise
        ours.setblocking(False)
        whole = child_environment({**environment, JOB_MARK: _BLANK_MARK})
        try:
            process = await asyncio.create_subprocess_exec(
                interpreter,
                str(WARM_PARENT),
                str(theirs.fileno()),
                env=whole,
                pass_fds=[theirs.fileno()],
                stdin=DEVNULL,
                stdout=relay.child_end,  # what the plugin's packages print when imported
                stderr=relay.child_end,
                start_new_session=True,
            )
        except BaseException as error:
            ours.close()
            relay.close()
            if isinstance(error, OSError):
                raise ParentFailed(f"{interpreter}: {error.strerror}") from None
            raise
        finally:
            theirs.close()
            relay.close_child_end()
        parent = cls(process, ours, relay, whole)
        try:
            await parent._handshake(order, seconds, begun)
        except BaseException:
            await parent.close(0)
            raise
        log.info("the plugin is warm: %.1f s, %d MB", time.time() - begun, parent._memory >> 20)
        return parent

    async def _handshake(self, order: Mapping[str, Any], seconds: float, begun: float) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self._sock.send(json.dumps(order).encode())
        try:
            async with asyncio.timeout(seconds):
                answer = await self._ready
        except TimeoutError:
            raise ParentFailed(f"the plugin was not imported in {seconds:.0f} seconds") from None
        if "failed" in answer:
            raise ParentFailed(answer["failed"])
        if answer["lacking"]:
            log.warning(
                "runs are slower and need more memory than they could, because the plugin's Python "
                "lacks what these adaptations need: %s",
                ", ".join(answer["lacking"]),
            )
        times = await asyncio.to_thread(_mtimes, answer["watch"])
        # What changed during the import may have been imported in its old form: forget its time, so
        # that it counts as changed.
        since, now = int(begun * 1e9), time.time_ns()
        self._watched = {
            path: None if at is None or since <= at <= now else at for path, at in times.items()
        }
        self._memory = await asyncio.to_thread(self._memory_now)

    # --- running -------------------------------------------------------------------------------

    async def fork(
        self,
        run: PluginRun,
        argv: list[str],
        environment: Mapping[str, str],
        output: int,
        on_progress: Callable[[Progress], None],
        stay: Mapping[str, Any] | None = None,
    ) -> RunChild | OSError:
        """Begin a run; returns its process, or the error that prevented it.

        Args:
            run: The run.
            argv: Its `sys.argv`.
            environment: What to set on top of `child_environment`.
            output: The descriptor for its stdout and stderr, of which it gets a copy.
            on_progress: Called with the progress that the run itself reports.
            stay: Whether its process may stay for others: see `warm_kept.py`.

        Raises:
            ChildLost: The parent is gone.
        """
        order = {
            "run": (number := next(self._numbers)),
            "job": run.job,
            "argv": argv,
            "cwd": str(run.root),
            "memory": run.max_memory,
            "stay": stay,
            "environment": self._environment_changes(
                child_environment({**environment, JOB_MARK: run.job})
            ),
        }
        child = ForkedChild(run.job, on_progress)
        try:
            if self.gone.done():
                raise ChildLost(_LOST)
            socket.send_fds(self._sock, [json.dumps(order).encode()], [output])
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return error
            raise ChildLost(_LOST) from None
        self._children[number] = child
        self._idle.clear()
        try:
            async with asyncio.timeout(_FORK_SECONDS):
                error_or_none = await asyncio.shield(child.started)
        except TimeoutError:
            log.error("the warm parent does not answer and is ended")
            await self.close(0)
            raise ChildLost(_LOST) from None
        if child.never_began and stay is not None:  # it was handed to a process that had just died
            return await self.fork(run, argv, environment, output, on_progress)
        return error_or_none or child

    def _environment_changes(self, whole: Mapping[str, str]) -> dict[str, str | None]:
        """How a run's environment differs from the parent's; None unsets a variable."""
        names = whole.keys() | self._environment.keys()
        return {n: whole.get(n) for n in names if whole.get(n) != self._environment.get(n)}

    # --- receiving -----------------------------------------------------------------------------

    def _on_readable(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while data := self._sock.recv(_PACKET):
                self._on_message(json.loads(data))
            self._close_socket()  # the parent closed its end

    def _on_message(self, message: dict[str, Any]) -> None:
        if "progress" in message:
            child = self._children.get(message.pop("progress"))
            if child is not None:
                child.on_progress(Progress(**message))
        elif "started" in message:
            child = self._children[message["started"]]
            child.pid = message["pid"]
            child.started.set_result(None)
        elif "finished" in message:
            child = self._children[message["finished"]]
            child.set_ended(child.pid, message["code"], message["peak"], alone=True)
            if message["left"]:
                log.info(
                    "job %s left %s: its process takes no other run", child.job, message["left"]
                )
        elif "kept" in message:
            child = self._forget(message["kept"])
            child.set_ended(child.pid, 0, message["peak"], alone=True)
            if message["turn"] > 1:
                log.info("job %s was run %d of its process", child.job, message["turn"])
        elif "refused" in message:
            number = message["errno"]
            error = OSError(number, os.strerror(number), message["path"])
            self._children[message["refused"]].started.set_result(error)
        elif "ended" in message:
            code = os.waitstatus_to_exitcode(message["status"])
            child = self._forget(message["ended"])
            child.set_ended(message["pid"], code, message["peak"], alone=message["alone"])
        elif not self._ready.done():
            self._ready.set_result(message)

    def _forget(self, run: int) -> ForkedChild:
        child = self._children.pop(run)
        if not self._children:
            self._idle.set()
        return child

    def _on_exit(self) -> None:
        self._on_readable()  # its last messages
        said = self._relay.close()
        if not self._ready.done():
            how = how_it_ended(self.gone.result(), said)
            self._ready.set_result({"failed": f"it ended before the plugin was imported, {how}"})
        for run in list(self._children):
            self._forget(run).set_lost()
        self._set_retired()
        self._close_socket()

    # --- ending --------------------------------------------------------------------------------

    def why_replace(self) -> str:
        """Why it should be replaced, else empty. Blocks for at most a millisecond."""
        if _mtimes(self._watched) != self._watched:
            return "the plugin, or a package beside it, has changed"
        if self._memory_now() > self._memory * _GROWTH:
            return "its memory has grown"
        return ""

    async def retire(self) -> None:
        """End it when its runs have ended, or at once if this is cancelled."""
        self._set_retired()
        try:
            await self._idle.wait()
        finally:
            await self.close()

    async def close(self, seconds: float = _GOODBYE_SECONDS) -> None:
        """Have it end its children and itself; kill it if that takes more than `seconds`."""
        self._close_socket()
        await asyncio.wait({self.gone}, timeout=seconds)
        if not self.gone.done():
            self._process.kill()
            await asyncio.wait({self.gone})

    def _set_retired(self) -> None:
        if not self.retired.done():
            self.retired.set_result(None)

    def _close_socket(self) -> None:
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()

    def _memory_now(self) -> int:
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0


def _mtimes(paths: Iterable[str]) -> dict[str, int | None]:
    """When each file or folder was last changed; None if it is gone."""
    times: dict[str, int | None] = {}
    for path in paths:
        try:
            times[path] = os.stat(path).st_mtime_ns  # noqa: PTH116 - quicker
        except OSError:
            times[path] = None
    return times
