"""The nodes of the cluster that can run the plugin, and the devices that they have."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pfms.cluster.node import look
from pfms.plugin import PLUGIN
from pfms.plugin.command import versions

log = logging.getLogger(__name__)

_SAME = ("pfms", PLUGIN.name, "torch", "monai")  # what has to be of the server's own version
_ANSWER_SECONDS = 20.0  # for a cluster to say which nodes it has
_LOOK_SECONDS = 120.0  # for a node to say which versions it has


class Nodes:
    """Which nodes there are, looked at again and again.

    A node counts once it has said that it has the plugin, in the versions that the server has.

    Attributes:
        ids: Ray's IDs of the nodes that can be used, by their names.
        there: The IDs of all nodes that are there, also of those that cannot be used.
        memory: Bytes that the largest of them has for runs; 0 if there is none.

    Args:
        plugin_command: As PFMS_PLUGIN_COMMAND.
        resource: The custom resource that nodes with the plugin have.
        slots: As PFMS_RAY_SLOTS: so many GPUs are counted on, even before their nodes are there.
    """

    def __init__(self, plugin_command: str, resource: str, slots: int) -> None:
        self.ids: dict[str, str] = {}
        self.there: frozenset[str] = frozenset()
        self.memory = 0
        self._plugin_command = plugin_command
        self._resource = resource
        self._slots = slots
        self._looked: dict[str, str] = {}  # by ID: why the node cannot be used; empty if it can
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._told: dict[str, Any] | None = None

    async def look(self) -> dict[str, Any] | None:
        """News for the server, or None.

        Raises:
            TimeoutError, RayError, ConnectionError, RuntimeError: The cluster does not answer.
        """
        found = await _all_nodes()
        there = [node for node in found if node["Alive"] and self._resource in node["Resources"]]
        names = _names(there)
        self.there = frozenset(names)
        self._forget(self.there)
        for node_id in names:
            if node_id not in self._looked and node_id not in self._looking:
                self._looking[node_id] = asyncio.create_task(self._look_at(node_id, names[node_id]))
        good = [node for node in there if self._looked.get(node["NodeID"]) == ""]
        self.ids.clear()
        self.ids |= {names[node["NodeID"]]: node["NodeID"] for node in good}
        self.memory = max((int(node["Resources"].get("memory", 0)) for node in good), default=0)
        news = {
            "devices": self._devices(good, names),
            "refused": {names[one]: why for one, why in self._looked.items() if why},
        }
        if news == self._told:
            return None
        self._told = news
        return news

    def _forget(self, there: Any) -> None:
        for node_id in self._looked.keys() - there:
            del self._looked[node_id]
        for node_id in self._looking.keys() - there:
            self._looking.pop(node_id).cancel()

    async def _look_at(self, node_id: str, name: str) -> None:
        task = ray.remote(look).options(
            num_cpus=0,
            max_retries=0,
            resources={self._resource: 0.001},
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                told = await task.remote(self._plugin_command)
        except (TimeoutError, RayError) as error:
            why = str(error).strip().splitlines()[-1]
            log.warning("the node %s does not answer: %s", name, why)
            if isinstance(error, RayTaskError):  # and it will not: it lacks pfms, or a part of it
                self._looked[node_id] = f"it cannot be looked at: {why}"
        else:
            self._looked[node_id] = why = why_not(told["versions"], told.get("trouble", ""))
            if why:
                log.warning("the node %s is not used: %s", name, why)
            else:
                log.info("the node %s can be used", name)
        self._looking.pop(node_id, None)

    def _devices(self, good: list[dict[str, Any]], names: dict[str, str]) -> list[str]:
        gpus, cpus = [], []
        for node in good:
            name, has = names[node["NodeID"]], node["Resources"]
            gpus += [f"{name}/cuda:{n}" for n in range(int(has.get("GPU", 0)))]
            if has.get("CPU", 0) >= 1:
                cpus.append(f"{name}/cpu")
        gpus += [f"later-{n}/cuda:0" for n in range(len(gpus), self._slots)]
        return [*gpus, *cpus]


def _names(nodes: list[dict[str, Any]]) -> dict[str, str]:
    """Names for people, by Ray's IDs: host names, longer where several nodes are on one host."""
    hosts = Counter(node["NodeManagerHostname"] for node in nodes)
    return {
        node["NodeID"]: host if hosts[host] == 1 else f"{host}-{node['NodeID'][:6]}"
        for node in sorted(nodes, key=lambda node: (node["NodeManagerHostname"], node["NodeID"]))
        for host in [node["NodeManagerHostname"]]
    }


async def is_there(node_id: str) -> bool:
    """Whether a node is alive, as far as the cluster knows; not if that does not answer."""
    try:
        return any(node["NodeID"] == node_id and node["Alive"] for node in await _all_nodes())
    except (TimeoutError, RayError, ConnectionError, RuntimeError):
        return False


async def _all_nodes() -> list[dict[str, Any]]:
    async with asyncio.timeout(_ANSWER_SECONDS):
        found: list[dict[str, Any]] = await asyncio.to_thread(ray.nodes)
        return found


def why_not(theirs: Mapping[str, str], trouble: str = "") -> str:
    """Why a node with these versions, or with this trouble, is not used; empty if it is."""
    if trouble:
        return trouble
    ours = versions()
    differing = [
        f"{name} {theirs.get(name, 'is missing')}, the server {ours.get(name, 'has none')}"
        for name in _SAME
        if ours.get(name) != theirs.get(name)
    ]
    return f"it has other versions: {'; '.join(differing)}" if differing else ""
