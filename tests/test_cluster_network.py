"""Nodes of a Ray cluster with addresses of their own, and a network between them that is cut.

Each is in a network namespace, as on a machine of its own. Ray asks them for a token.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from signal import SIGKILL

import httpx
import psutil
import pytest

from tests.cluster import RESOURCE
from tests.conftest import Server, eventually, seed_model, start
from tests.test_cluster import LONG, devices, ended, processes_of, until_it_runs

BRIDGE = "pfmsbr"
HEAD, ADDRESS = "10.77.0.1", "10.77.0.{}"
PORT = 6399
NODES = ("a", "b")
SERVER = "pfms"

# A minute and a half each: Ray takes its time to give a node up.
pytestmark = [
    pytest.mark.every,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"),
        reason="needs root, ip and unshare",
    ),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def a_network(*names: str) -> Iterator[None]:
    """Namespaces at 10.77.0.2 and on, in the order of their names; this one is at 10.77.0.1."""
    with ExitStack() as undo:
        ip("link", "add", BRIDGE, "type", "bridge")
        undo.callback(ip, "link", "del", BRIDGE)
        ip("addr", "add", f"{HEAD}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(names, 2):
            space = f"pfms-{name}"
            ip("netns", "add", space)
            undo.callback(ip, "netns", "del", space)
            ip("link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", space, "master", BRIDGE, "up")
            ip("-n", space, "addr", "add", f"{ADDRESS.format(number)}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", space, "link", "set", device, "up")
        yield


def inside(name: str) -> list[str]:
    """What runs a program in a namespace, alone with its own processes; it ends with them.

    Ray's files are its own, too, as on another machine.
    """
    alone = ["unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    own_files = 'mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && exec "$@"'
    return ["ip", "netns", "exec", f"pfms-{name}", *alone, "sh", "-c", own_files, "sh"]


def cut(name: str) -> None:
    ip("link", "set", f"pfms-{name}", "down")


def heal(name: str) -> None:
    ip("link", "set", f"pfms-{name}", "up")


@contextmanager
def ray_node(log: Path, *options: str, prefix: list[str] | None = None) -> Iterator[None]:
    """A node, started as an operator starts it; killed at the end."""
    argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
    argv += ["--disable-usage-stats", "--object-store-memory=100000000"]
    with log.open("ab") as output:
        process = subprocess.Popen([*(prefix or []), *argv], stdout=output, stderr=output)
    try:
        yield
    finally:
        its = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, alive = psutil.wait_procs(its, 10)
        for each in alive:
            each.kill()
        process.wait()


def worker(tmp_path: Path, name: str) -> AbstractContextManager[None]:
    number = 2 + NODES.index(name)
    own = [f"--address={HEAD}:{PORT}", f"--node-ip-address={ADDRESS.format(number)}"]
    has = ["--num-cpus=1", "--num-gpus=0", f'--resources={{"{RESOURCE}": 1}}']
    return ray_node(tmp_path / f"{name}.log", *own, *has, prefix=inside(name))


def test_a_network_that_is_cut_costs_no_job_and_is_used_again_once_it_is_healed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-token-of-this-test-which-nobody-else-has")
    with ExitStack() as up:
        up.enter_context(a_network(*NODES, SERVER))
        own = f"--head --port={PORT} --node-ip-address={HEAD} --num-cpus=0 --num-gpus=0"
        up.enter_context(ray_node(tmp_path / "head.log", *own.split(), "--include-dashboard=false"))
        workers = {name: up.enter_context(ExitStack()) for name in NODES}
        for name in NODES:
            workers[name].enter_context(worker(tmp_path, name))
        server = serving(tmp_path)
        up.callback(server.stop, SIGKILL)  # `unshare` passes no other signal on
        eventually(lambda: len(devices_or_none(server)) == 2, LONG)

        jobs = [server.submit() for _ in range(2)]
        first = until_it_runs(server, jobs[0])
        name = next(each for each in NODES if is_in(first, each))
        cut(name)
        eventually(lambda: all(ended(server, job) for job in jobs), 2 * LONG)
        for job in map(server.job, jobs):
            assert (job["state"], job["attempts"]) == ("succeeded", 1), job
        assert len(devices(server)) == 1

        heal(name)
        # It learns that it was given up, and ends; its service manager starts it again.
        workers[name].close()
        workers[name].enter_context(worker(tmp_path, name))
        eventually(lambda: len(devices(server)) == 2, LONG)
        assert server.infer().status_code == 200
        assert processes_of(jobs[0]) == []


def devices_or_none(server: Server) -> list[str]:
    try:
        return devices(server)
    except (KeyError, httpx.HTTPError):
        return []


def is_in(process: psutil.Process, name: str) -> bool:
    """Whether a process is in a namespace."""
    there = Path(f"/run/netns/pfms-{name}").stat()
    return Path(f"/proc/{process.pid}/ns/net").stat().st_ino == there.st_ino


def serving(tmp_path: Path) -> Server:
    """A server on a machine of its own, which is no node yet."""
    seed_model(tmp_path / "workspace", content=b"8")
    return start(
        tmp_path / "workspace",
        "waits.py",
        prefix=inside(SERVER),
        executor="ray",
        ray_address=f"{HEAD}:{PORT}",
        ray_scratch=tmp_path / "scratch",
        host=ADDRESS.format(2 + len(NODES)),
        insecure=True,
        max_attempts=1,
    )
