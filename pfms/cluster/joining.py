"""How the driver gets into a cluster, and out of it."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import ray

from pfms.processes.parent import end_with_parent

_LEAVE_SECONDS = 10.0  # for this machine to leave the cluster


def connect(address: str, resource: str, cpus: int) -> None:
    """Connect to a cluster, or begin one on this machine if there is no address.

    Args:
        address: The head's, as HOST:PORT; this machine is one of the nodes.
        resource: The custom resource that this machine has in a cluster of its own.
        cpus: The cores that it has there.

    Raises:
        Exception: Of Ray; the cluster cannot be reached.
    """
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address:
        ray.init(address=address, **common)
        return
    ray.init(
        address="local",
        num_cpus=cpus,
        resources={resource: 1},
        include_dashboard=False,
        **common,
    )


@contextmanager
def member_of(address: str) -> Iterator[None]:
    """Have this machine be a node without resources meanwhile, unless it is a node already.

    A driver can only talk to a cluster through a node on its own machine.
    """
    if not address or any(process.name() == "raylet" for process in psutil.process_iter(["name"])):
        yield
        return
    node = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}"),
            *("--num-cpus=0", "--num-gpus=0", "--disable-usage-stats", "--block"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        yield
    finally:
        node.terminate()  # upon which it ends what it has started
        try:
            node.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            node.kill()
