"""A Ray cluster of several simulated nodes on this machine."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

MIB = 1 << 20
RESOURCE = "pfms"


@contextmanager
def a_cluster(nodes: int = 2, port: int = 0) -> Iterator[Any]:
    """A head without resources, and nodes with two cores each; skips without Ray, but not in CI.

    Gives a `ray.cluster_utils.Cluster`, whose head listens at `port`, or where it likes.
    """
    if importlib.util.find_spec("ray") is None:
        assert "CI" not in os.environ, "CI needs `make install-ray`"
        pytest.skip("needs `make install-ray`")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * MIB}
    head |= {"gcs_server_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Any, **options: Any) -> Any:
    """Another node that can run the plugin."""
    usual = {"num_cpus": 2, "resources": {RESOURCE: 1}, "object_store_memory": 100 * MIB}
    return cluster.add_node(**{**usual, **options})


def told(cluster: Any, plugin: str, **others: Any) -> dict[str, Any]:
    """What `RayExecutor` tells its driver: see `executors/choice.py`."""
    return {
        "address": cluster.address,
        "resource": RESOURCE,
        "slots": 0,
        "scratch": "",
        "cpus": 2,
        "plugin_command": plugin,
        "adaptations_off": (),
        "runs_per_process": 1,
        "jobs_per_device": 1,
        **others,
    }
