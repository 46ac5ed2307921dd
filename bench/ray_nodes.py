"""A Ray cluster of simulated nodes on this machine: each a raylet with one CPU."""

import importlib.util
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psutil

from bench.figures import Skipped
from bench.load import MIB

_JOIN_SECONDS = 300


class Cluster(NamedTuple):
    """A cluster that runs.

    Attributes:
        address: Of its head, host:port.
        processes: Its own: the servers of the head, and each node's raylet with its helpers.
    """

    address: str
    processes: list[psutil.Process]


@contextmanager
def nodes(count: int, object_store: int = 80 * MIB, behind: int = 0) -> Iterator[Cluster]:
    """Start so many nodes beside a head that runs nothing.

    What this process starts meanwhile has the cluster's token in its environment.

    Args:
        count: How many.
        object_store: Of each, bytes of shared memory.
        behind: How much lower their priority is (nice), and that of their runs: real nodes take
            no core from the server.

    Raises:
        Skipped: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise Skipped("Ray is not installed (make install-ray)")
    os.environ |= {  # ray reads them when it is imported
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_urlsafe(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    from ray.cluster_utils import Cluster as Simulated

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    small: dict[str, Any] = {"object_store_memory": object_store, "include_dashboard": False}
    simulated = Simulated(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        for _ in range(count):
            simulated.add_node(wait=False, num_cpus=1, resources={"pfms": 1000}, **small)
        simulated.wait_for_nodes(timeout=_JOIN_SECONDS)
        started = psutil.Process().children(recursive=True)
        own = [child for child in started if child.pid not in before]
        for process in own if behind else ():
            process.nice(psutil.Process().nice() + behind)
        yield Cluster(simulated.address, own)
    finally:
        simulated.shutdown()
