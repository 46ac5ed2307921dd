"""A Ray cluster runs the plugin. A program of its own talks to it: Ray's driver, `pfms.cluster`."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from pfms.aio import to_the_end
from pfms.executors.base import Missing
from pfms.executors.relay import Relay
from pfms.executors.stages import Stages
from pfms.plugin.command import PluginCommand
from pfms.plugin.types import OnProgress, PluginExit, PluginRun, Progress
from pfms.processes.marks import WORKSPACE_MARK

log = logging.getLogger(__name__)

_PACKET = 1 << 20  # bytes; more than a socket takes
_MAX_PAUSE_SECONDS = 30.0  # between two starts of the driver
_GOODBYE_SECONDS = 10.0  # for the driver to leave the cluster

_CONNECTING = "the server is connecting to it"
_NO_NODE = "no node of the Ray cluster can run the plugin"


class RayExecutor:
    """Has a Ray cluster run the plugin. Its devices are those of the nodes.

    Args:
        command: How the plugin is called here, and, by PFMS_PLUGIN_COMMAND, on the nodes.
        settings: What the driver is told: see `choice.py`.
        workspace_mark: As for `FreshExecutor`.
        pause_seconds: The pause before a driver is started again; doubled after each that fails.
    """

    name = "ray"

    def __init__(
        self,
        command: PluginCommand,
        settings: Mapping[str, Any],
        workspace_mark: str = "",
        *,
        pause_seconds: float = 1.0,
    ) -> None:
        self._own_words = len(command.argv)
        self._settings = settings
        self._marks = {WORKSPACE_MARK: workspace_mark} if workspace_mark else {}
        self._pause_seconds = pause_seconds
        self._devices: tuple[str, ...] = ()
        self._refused: dict[str, str] = {}
        self._trouble = _CONNECTING
        self._on_change: Callable[[], None] = lambda: None
        self._driver: _Driver | None = None
        self._there = asyncio.Event()  # set while there is a driver that has reached the cluster
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to keep a driver; runs wait until it has reached the cluster."""
        self._keeper = asyncio.create_task(self._keep_driver())

    def missing(self) -> Missing | None:
        """`cluster-unreachable`, or `cluster-empty` if no node can run the plugin."""
        if self._trouble:
            return Missing("cluster-unreachable", f"the Ray cluster: {self._trouble}")
        if self._devices:
            return None
        why = "".join(f"; {node}: {reason}" for node, reason in self._refused.items())
        return Missing("cluster-empty", _NO_NODE + why)

    def devices(self) -> tuple[str, ...]:
        """The devices of the nodes; none while the cluster cannot be reached."""
        return self._devices

    def watch_devices(self, on_change: Callable[[], None]) -> None:
        """Have a function called on the event loop whenever `devices` has changed."""
        self._on_change = on_change

    async def run(self, run: PluginRun, on_progress: OnProgress | None = None) -> PluginExit:
        """Run the plugin to its end, as `Executor` says. Waits for the cluster first."""
        driver = await self._ready_driver()
        device = run.slot.rpartition("/")[0]
        node, _, kind = device.rpartition("/")
        order = {
            "job": run.job,
            "root": str(run.root),
            "log": str(run.log),
            "arguments": run.argv[self._own_words :],
            "environment": dict(run.environment),
            "time_limit": run.time_limit,
            "grace": run.grace,
            "max_log_bytes": run.max_log_bytes,
            "max_memory": run.max_memory,
            "memory": run.memory,
            "kind": run.kind,
            "node": node,
            "gpu": kind.startswith("cuda"),
        }
        stages = Stages(on_progress)
        number, ended = driver.order(order, stages.report)
        try:
            end = await asyncio.shield(ended)
        except asyncio.CancelledError:
            driver.cancel(number)
            await to_the_end(ended)
            raise
        if end.pop("cancelled", False):  # nobody asked for that
            return PluginExit(None, None, 0, "executor", "the cluster ended the run")
        return PluginExit(**end)

    async def close(self) -> None:
        """End the driver, and with it whatever runs."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if self._driver is not None:
            await self._driver.close()

    async def _ready_driver(self) -> "_Driver":
        while self._driver is None or not self._there.is_set():
            await self._there.wait()
        return self._driver

    async def _keep_driver(self) -> None:
        failures = 0
        while True:
            try:
                self._driver = driver = await _Driver.start(
                    self._settings, self._marks, self._on_news
                )
            except OSError as error:
                self._trouble = f"its driver does not start: {error.strerror}"
            else:
                await asyncio.wait({driver.gone})
                if self._there.is_set():
                    failures = 0
                    log.error("the connection to the Ray cluster is lost; connecting again")
                    self._trouble = "the connection is lost"
                self._there.clear()
                self._set_devices(())
            failures += 1
            pause = self._pause_seconds * 2 ** min(failures - 1, 10)
            await asyncio.sleep(min(pause, _MAX_PAUSE_SECONDS))

    def _on_news(self, news: Mapping[str, Any]) -> None:
        if "unreachable" in news:
            if self._trouble != news["unreachable"]:
                log.error("the Ray cluster cannot be reached: %s", news["unreachable"])
            self._trouble = news["unreachable"]
            self._there.clear()
            self._set_devices(())
            return
        self._trouble = ""
        self._refused = news["refused"]
        self._there.set()
        self._set_devices(news["devices"])

    def _set_devices(self, devices: Sequence[str]) -> None:
        if tuple(devices) != self._devices:
            self._devices = tuple(devices)
            self._on_change()


class _Driver:
    """A running driver, and the runs that it has been given."""

    def __init__(
        self,
        process: Process,
        sock: socket.socket,
        relay: Relay,
        on_news: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.gone = asyncio.ensure_future(process.wait())
        self._process = process
        self._sock = sock
        self._relay = relay
        self._on_news = on_news
        self._numbers = count()
        self._runs: dict[
            int, tuple[asyncio.Future[dict[str, Any]], Callable[[Progress], None]]
        ] = {}
        self.gone.add_done_callback(lambda _: self._on_exit())
        asyncio.get_running_loop().add_reader(sock, self._on_readable)

    @classmethod
    async def start(
        cls,
        settings: Mapping[str, Any],
        marks: Mapping[str, str],
        on_news: Callable[[Mapping[str, Any]], None],
    ) -> "_Driver":
        """Start one.

        Raises:
            OSError: It cannot be started.
        """
        relay = Relay()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pfms.cluster", str(theirs.fileno())),
                env={**os.environ, **marks, **_ray_environment(settings["address"])},
                pass_fds=[theirs.fileno()],
                stdin=DEVNULL,
                stdout=relay.child_end,
                stderr=relay.child_end,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            relay.close()
            raise
        finally:
            theirs.close()
            relay.close_child_end()
        ours.setblocking(False)
        ours.send(json.dumps(settings).encode())
        return cls(process, ours, relay, on_news)

    def order(
        self, order: Mapping[str, Any], on_progress: Callable[[Progress], None]
    ) -> tuple[int, asyncio.Future[dict[str, Any]]]:
        """Begin a run; returns its number, and what tells how it ended (`PluginExit`'s fields)."""
        number = next(self._numbers)
        ended: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._runs[number] = ended, on_progress
        if not self._send({**order, "run": number}):
            self._lose(number)
        return number, ended

    def cancel(self, number: int) -> None:
        """Have a run ended, if it has not ended."""
        self._send({"cancel": number})

    def _send(self, message: Mapping[str, Any]) -> bool:
        if self._sock.fileno() < 0:
            return False
        try:
            self._sock.send(json.dumps(message).encode())
        except OSError as error:  # it is gone, or stuck
            log.error("the cluster's driver does not listen: %s", error.strerror)
            self._process.kill()
            return False
        return True

    def _on_readable(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while data := self._sock.recv(_PACKET):
                self._on_message(json.loads(data))
            self._close_socket()

    def _on_message(self, message: dict[str, Any]) -> None:
        if "progress" in message:
            _, on_progress = self._runs[message.pop("progress")]
            on_progress(Progress(**message))
        elif "ended" in message:
            ended, _ = self._runs.pop(message.pop("ended"))
            if not ended.done():
                ended.set_result(message)
        else:
            self._on_news(message)

    def _on_exit(self) -> None:
        self._on_readable()  # its last messages
        self._relay.close()
        for number in list(self._runs):
            self._lose(number)
        self._close_socket()

    def _lose(self, number: int) -> None:
        ended, _ = self._runs.pop(number)
        if not ended.done():
            why = "the connection to the Ray cluster was lost"
            lost = PluginExit(None, None, 0, "executor", why, blameless=True)
            ended.set_result(lost.__dict__.copy())

    async def close(self) -> None:
        """Have it leave the cluster; kill it if that takes long."""
        self._close_socket()
        await asyncio.wait({self.gone}, timeout=_GOODBYE_SECONDS)
        if not self.gone.done():
            self._process.kill()
            await asyncio.wait({self.gone})

    def _close_socket(self) -> None:
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()


def _ray_environment(address: str) -> dict[str, str]:
    """What Ray reads when it is imported: a cluster of our own gets a token of its own."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0"}
    if address:
        return quiet
    return {**quiet, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
