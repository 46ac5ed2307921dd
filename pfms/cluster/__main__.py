"""`python -m pfms.cluster FD`: Ray's driver for a server, which it talks to over a socket.

Messages are JSON, one a packet. The server begins with settings (see `executors/choice.py`); then
it sends orders (`RayExecutor.run`), each with its number `run`, and {"cancel": NUMBER}. It gets
{"devices": [NAMES], "refused": {NODE: WHY}} whenever they change, {"unreachable": WHY}, for a run
{"progress": NUMBER, ...}, and at last {"ended": NUMBER, ...}.
When the server's end of the socket closes, this program ends, and with it every actor.
"""

import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray

from pfms.cluster.joining import connect, member_of
from pfms.cluster.node import NodeConfig
from pfms.cluster.nodes import Nodes
from pfms.cluster.slots import Slots
from pfms.plugin.verdict import one_line

log = logging.getLogger("pfms.cluster")

_LOOK_SECONDS = 1.0  # between two looks at the nodes
_GOODBYE_SECONDS = 8.0  # to leave a cluster
_PACKET = 1 << 20


class Driver:
    """Answers one server."""

    def __init__(self, sock: socket.socket, settings: Mapping[str, Any]) -> None:
        self._sock = sock
        config = NodeConfig(
            plugin_command=settings["plugin_command"],
            adaptations_off=tuple(settings["adaptations_off"]),
            runs_per_process=settings["runs_per_process"],
            jobs_per_device=settings["jobs_per_device"],
            scratch=settings["scratch"],
        )
        self._nodes = Nodes(config.plugin_command, settings["resource"], settings["slots"])
        self._slots = Slots(config, settings["resource"], self._nodes)
        self._runs: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Until the server, or the cluster, is gone."""
        self._sock.setblocking(False)
        works = {asyncio.create_task(self._obey()), asyncio.create_task(self._watch())}
        done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        for work in done:
            if (error := work.exception()) is not None:
                self._tell({"unreachable": f"it does not answer: {_said_by(error)}"})
                os._exit(1)  # Ray would go on trying for a minute

    async def _obey(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._sock, _PACKET):
            message = json.loads(data)
            if "cancel" in message:
                if (run := self._runs.get(message["cancel"])) is not None:
                    run.cancel()
                continue
            task = asyncio.create_task(self._run(message))
            self._runs[message["run"]] = task

    async def _run(self, order: dict[str, Any]) -> None:
        try:
            end = await self._slots.run(order, self._tell)
        except asyncio.CancelledError:
            end = {"cancelled": True}
        except Exception as error:
            log.exception("job %s", order["job"])
            end = {"ended_by": "executor", "message": f"the cluster's driver met {error!r}"}
        del self._runs[order["run"]]
        self._tell({"ended": order["run"], **end})

    async def _watch(self) -> None:
        while True:
            if (news := await self._nodes.look()) is not None:
                self._tell(news)
            await self._slots.end_idle()
            await asyncio.sleep(_LOOK_SECONDS)

    def _tell(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self._sock.setblocking(True)
            self._sock.send(json.dumps(message).encode())
            self._sock.setblocking(False)


def _said_by(error: BaseException) -> str:
    """What it says, or what it is."""
    return one_line(str(error)) or type(error).__name__


def _end_with_server(sock: socket.socket, connected: threading.Event) -> None:
    """End this program with its server, even while Ray blocks it."""
    waiting = select.poll()
    waiting.register(sock, 0)  # which tells of nothing but a hang-up
    waiting.poll()
    if connected.is_set():
        time.sleep(_GOODBYE_SECONDS)
    os._exit(1)


def main() -> None:
    """See the module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sock = socket.socket(fileno=int(sys.argv[1]))
    settings = json.loads(sock.recv(_PACKET))
    connected = threading.Event()
    threading.Thread(target=_end_with_server, args=(sock, connected), daemon=True).start()
    with member_of(settings["address"]):
        try:
            connect(settings["address"], settings["resource"], settings["cpus"])
            connected.set()
            asyncio.run(Driver(sock, settings).serve())
        except Exception as error:
            why = _said_by(error)
            with contextlib.suppress(BrokenPipeError, ConnectionError):
                sock.send(json.dumps({"unreachable": why}).encode())
        with contextlib.suppress(Exception):
            ray.shutdown()


if __name__ == "__main__":
    main()
