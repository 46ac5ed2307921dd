"""`python -m pfms.cluster FD`: Ray's driver for a server, which it talks to over a socket.

Messages are JSON, one in a packet. The server begins with the settings (`_Settings`); then it sends
orders, each with its number `run` (`slots.py` says what else), and {"cancel": NUMBER}. It gets
{"devices": [NAMES], "refused": {NODE: WHY}} whenever they change, {"unreachable": WHY}, for a run
{"progress": NUMBER, ...}, and at last {"ended": NUMBER, ...}.
When the server's end of the socket closes, this program ends, and with it every actor.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import ray

from pfms.cluster.node import NodeConfig
from pfms.cluster.nodes import Nodes
from pfms.cluster.slots import Slots

log = logging.getLogger("pfms.cluster")

_LOOK_SECONDS = 1.0  # between two looks at the nodes
_PACKET = 1 << 20


class Driver:
    """Answers one server."""

    def __init__(self, sock: socket.socket, settings: Mapping[str, Any]) -> None:
        self._sock = sock
        self._settings = settings
        config = NodeConfig(
            plugin_command=settings["plugin_command"],
            adaptations_off=tuple(settings["adaptations_off"]),
            runs_per_process=settings["runs_per_process"],
            jobs_per_device=settings["jobs_per_device"],
            scratch=settings["scratch"],
        )
        self._nodes = Nodes(config.plugin_command, settings["resource"], settings["slots"])
        self._slots = Slots(config, settings["resource"], self._nodes.ids)
        self._runs: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Until the server is gone."""
        self._sock.setblocking(False)
        watching = asyncio.create_task(self._watch())
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._sock, _PACKET):
            message = json.loads(data)
            if "cancel" in message:
                if (run := self._runs.get(message["cancel"])) is not None:
                    run.cancel()
                continue
            task = asyncio.create_task(self._run(message))
            self._runs[message["run"]] = task
        watching.cancel()

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


def connect(address: str, resource: str, cpus: int) -> None:
    """Join a cluster, or begin one on this machine if there is no address.

    Raises:
        Exception: Of Ray; the cluster cannot be reached.
    """
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if not address:
        ray.init(
            address="local",
            num_cpus=cpus,
            resources={resource: 1},
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **common,
        )
        return
    try:
        ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError):
        # This machine is not a node yet: it becomes one without resources, for as long as this
        # program lives.
        subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}"),
                *("--num-cpus=0", "--num-gpus=0", "--disable-usage-stats", "--block"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        ray.init(address=address, **common)


def main() -> None:
    """See the module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sock = socket.socket(fileno=int(sys.argv[1]))
    settings = json.loads(sock.recv(_PACKET))
    try:
        connect(settings["address"], settings["resource"], settings["cpus"])
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        sock.send(json.dumps({"unreachable": why}).encode())
        os._exit(1)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Driver(sock, settings).serve())
    with contextlib.suppress(Exception):
        ray.shutdown()


if __name__ == "__main__":
    main()
