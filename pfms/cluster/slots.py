"""The actors on the nodes: made where Ray finds room, kept for later runs, and each run in one."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pfms.cluster.node import Node, NodeConfig
from pfms.cluster.nodes import Nodes, is_there, why_not
from pfms.cluster.parcels import Unpacking
from pfms.executors.devices import CPU
from pfms.plugin import PLUGIN
from pfms.plugin.types import PluginExit
from pfms.plugin.verdict import one_line
from pfms.processes.output import BoundedLog
from pfms.storage.inside import open_file

log = logging.getLogger(__name__)

_IDLE_SECONDS = 300.0  # for which an actor keeps its place, and the plugin warm
_CANCEL_SECONDS = 15.0  # beyond the grace, for an actor to say that all is dead
_LATE_SECONDS = 60.0  # beyond the time limit, for an actor to say how a run ended
_ROOM_SECONDS = 10.0  # for Ray to place an actor, before an idle one is ended to make room
_AHEAD = 8  # messages of a run that are in the object store at a time
_GIB = 1 << 30
_WEIGHTS_KEPT = 4  # models whose weights stay in the object store

Tell = Callable[[Mapping[str, Any]], None]


class Actor:
    """An actor that has started, or is starting."""

    def __init__(self, handle: Any, *, gpu: bool, memory: int, wanted: str) -> None:
        self.handle = handle
        self.gpu = gpu
        self.memory = memory
        self.node = wanted
        self.node_id = ""
        self.versions: dict[str, str] = {}
        self.since = time.monotonic()


class NodeRefused(Exception):
    """The node that Ray chose cannot be used; the message says why."""


class Slots:
    """The pool of actors.

    Args:
        config: For the actors.
        resource: The custom resource that nodes with the plugin have.
        nodes: Those that can be used.
    """

    def __init__(self, config: NodeConfig, resource: str, nodes: Nodes) -> None:
        self._config = config
        self._resource = resource
        self._nodes = nodes
        self._idle: list[Actor] = []
        self._weights: dict[str, Any] = {}

    async def run(self, order: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        """Run the plugin for an order of `executors/cluster.py`; returns how it ended.

        That is a dict with the fields of `PluginExit`, or {"cancelled": True}; and `node` and
        `versions`, if it ran.
        """
        begun = time.monotonic()
        node = order["node"]
        actor: Actor | None = None
        blameless = False
        try:
            actor = await self._actor(order)
            node = actor.node
            async with asyncio.timeout(order["time_limit"] + _LATE_SECONDS):
                end = await self._in(actor, order, tell)
        except asyncio.CancelledError:
            if actor is not None:
                await asyncio.shield(self._end(actor))
            raise
        except TimeoutError:
            why = f"the node {node} did not say how the run ended"
        except RayError as error:
            log.warning("job %s: %s", order["job"], one_line(str(error)))
            why = f"the node {node} was lost, or the run's process on it"
            if actor is None:
                blameless = not isinstance(error, RayTaskError)
            else:
                # Ray calls an actor unavailable until it knows what is gone.
                unavailable = isinstance(error, ActorUnavailableError)
                blameless = unavailable or not await is_there(actor.node_id)
        except NodeRefused as error:
            why, blameless = str(error), True
        except OSError as error:
            why = f"what the run wrote could not be fetched from the node {node}: {error}"
        else:
            actor.since = time.monotonic()
            self._idle.append(actor)
            return {**end, "node": node, "versions": actor.versions}
        if actor is not None:
            await self._end(actor)
        seconds = time.monotonic() - begun
        return PluginExit(None, None, seconds, "executor", why, blameless=blameless).__dict__

    async def end_idle(self) -> None:
        """End the actors that have waited for long, and those whose nodes are gone."""
        now = time.monotonic()
        for actor in list(self._idle):
            gone = actor.node_id not in self._nodes.there
            if gone or now - actor.since > _IDLE_SECONDS:
                self._idle.remove(actor)
                await self._end(actor)

    # --- actors ------------------------------------------------------------------------------

    async def _actor(self, order: Mapping[str, Any]) -> Actor:
        """An idle actor that is large enough, at best on the wanted node; else a new one."""
        gpu, wanted = order["gpu"], order["node"]
        memory = _class_of(order["memory"])
        if self._nodes.memory:  # a run that needs more than any node has gets a whole one
            memory = min(memory, self._nodes.memory)
        alike = [one for one in self._idle if one.gpu == gpu]
        alike.sort(key=lambda one: (one.node != wanted, one.memory))
        fitting = [one for one in alike if one.memory >= memory]
        if fitting:
            self._idle.remove(fitting[0])
            return fitting[0]
        if alike:  # it holds the place that the new one needs
            self._idle.remove(alike[0])
            await self._end(alike[0])
        actor = Actor(self._make(gpu, memory, wanted), gpu=gpu, memory=memory, wanted=wanted)
        try:
            await self._placed(actor)
            told = await actor.handle.start.remote()
            # Ray may have put it on a node that was not looked at, or that is not used.
            if why := why_not(told["versions"]):
                raise NodeRefused(f"{told['host']}: {why}")
        except BaseException:
            await asyncio.shield(self._end(actor))
            raise
        names = {node_id: name for name, node_id in self._nodes.ids.items()}
        actor.node_id = told["node_id"]
        actor.node = names.get(actor.node_id, told["host"])
        actor.versions = told["versions"]
        return actor

    async def _placed(self, actor: Actor) -> None:
        """Wait until Ray has found room for an actor; idle ones make room, one after the other."""
        ready = asyncio.ensure_future(_result_of(actor.handle.__ray_ready__.remote()))
        while not (await asyncio.wait({ready}, timeout=_ROOM_SECONDS))[0]:
            if self._idle:
                await self._end(self._idle.pop(0))
        ready.result()

    def _make(self, gpu: bool, memory: int, wanted: str) -> Any:
        share = 1 / self._config.jobs_per_device
        options: dict[str, Any] = {
            "max_restarts": 0,
            "num_cpus": 0 if gpu else 1,
            "resources": {self._resource: 0.001},
        }
        if gpu:
            options["num_gpus"] = share
        if memory:
            options["memory"] = memory
        if wanted in self._nodes.ids:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                self._nodes.ids[wanted], soft=True
            )
        return ray.remote(Node).options(**options).remote(self._config, "cuda:0" if gpu else CPU)

    async def _end(self, actor: Actor) -> None:
        with contextlib.suppress(RayError):
            await asyncio.to_thread(ray.kill, actor.handle)

    # --- a run -------------------------------------------------------------------------------

    async def _in(self, actor: Actor, order: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        root = Path(order["root"])
        volume, weights = await asyncio.to_thread(self._send, root)
        messages = actor.handle.run.options(
            num_returns="streaming", _generator_backpressure_num_objects=_AHEAD
        ).remote(
            {name: text for name, text in order.items() if name not in ("root", "log")},
            volume,
            weights,
        )
        del volume, weights  # Ray keeps them until the node has them
        kept_log = await asyncio.to_thread(BoundedLog, Path(order["log"]), order["max_log_bytes"])
        unpacking = Unpacking(root)
        receiving = asyncio.create_task(self._receive(messages, order, tell, kept_log, unpacking))
        try:
            return await asyncio.shield(receiving)
        except asyncio.CancelledError:
            async with asyncio.timeout(order["grace"] + _CANCEL_SECONDS):
                await actor.handle.cancel.remote()
                return await receiving
        finally:
            receiving.cancel()
            await asyncio.wait({receiving})
            await asyncio.to_thread(unpacking.abandon)
            await asyncio.to_thread(kept_log.close)

    async def _receive(
        self,
        messages: Any,
        order: Mapping[str, Any],
        tell: Tell,
        kept_log: BoundedLog,
        unpacking: Unpacking,
    ) -> dict[str, Any]:
        async for reference in messages:
            kind, *rest = message = await reference
            del reference
            if kind == "progress":
                stage, done, total = rest
                tell({"progress": order["run"], "stage": stage, "done": done, "total": total})
            elif kind == "log":
                await asyncio.to_thread(_append, kept_log, rest[0])
            elif kind == "ended":
                end: dict[str, Any] = rest[0]
                return end
            elif kind == "cancelled":
                return {"cancelled": True}
            else:
                await asyncio.to_thread(unpacking.take, message)
        return PluginExit(None, None, 0, "executor", "the node said no more").__dict__

    def _send(self, root: Path) -> tuple[Any, Any]:
        """Put volume and weights into the object store; a node fetches the same weights once."""
        volume, content = (_content_of(root, name) for name in (PLUGIN.volume, PLUGIN.weights))
        sha256 = hashlib.sha256(content or b"").hexdigest()
        weights = self._weights.pop(sha256, None) or ray.put(content)
        self._weights[sha256] = weights
        while len(self._weights) > _WEIGHTS_KEPT:
            del self._weights[next(iter(self._weights))]
        return ray.put(volume), weights


async def _result_of(reference: Any) -> Any:
    return await reference


def _content_of(root: Path, name: str) -> bytes | None:
    """What a run is given; None if it is not there, which the run then finds out."""
    try:
        with open_file(root, name) as file:
            return file.read()
    except FileNotFoundError:
        return None


def _class_of(memory: int) -> int:
    """A power of two of GiB, so that an actor is large enough for many runs; 0 stays 0."""
    if not memory:
        return 0
    size = _GIB
    while size < memory:
        size *= 2
    return size


def _append(kept_log: BoundedLog, data: bytes) -> None:
    for begin in range(0, len(data), kept_log.piece):
        kept_log.write(data[begin : begin + kept_log.piece])
