"""Jobs on simulated nodes of Ray: throughput, a server under load, and what each job costs."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
import psutil

from bench.figures import Figure, Task, spread
from bench.load import FAKES, MODELS, Caller, expect, serving, work_through
from bench.ray_nodes import Cluster, nodes
from bench.volumes import content
from tests.conftest import ROOT, Server, nifti_bytes, seed_model

_MEGABYTE = 10**6
_PLUGIN = FAKES / "waits.py"
_LONGEST_SECONDS = 3600


def measure(task: Task) -> Iterator[Figure]:
    """Few nodes that are kept busy; many; and each job beside one of the local warm executor."""
    yield from _throughput(task)
    yield from _many_nodes(task)
    yield from _cost(task)


def _throughput(task: Task) -> Iterator[Figure]:
    """Runs of one second on 4 nodes; at best, 4 a second."""
    count, jobs = 4, task.either(200, 24)
    with nodes(count) as cluster, _on(cluster, task.folder / "few", 1.0, slots=count) as server:
        volume = nifti_bytes()
        work_through(server, volume, 2 * count, count)
        rate = jobs / work_through(server, volume, jobs, count + 2)
    yield Figure(
        f"{count} nodes, runs of 1 s: part of the ideal throughput",
        rate / count,
        at_least=0.9,
        note=f"{jobs} jobs, {rate:.2f}/s",
    )


def _many_nodes(task: Task) -> Iterator[Figure]:
    """A queue of small jobs on nodes that only wait, and a GET all the while."""
    count, jobs, seconds = task.either(40, 6), task.either(4000, 60), task.either(4, 1)
    name = f"{count} nodes, {jobs:,} jobs of 0.5 MB"
    volume = _volume(_MEGABYTE // 2)
    with (
        nodes(count, behind=10) as cluster,
        _on(cluster, task.folder / "many", seconds, slots=count, queue_limit=2 * jobs) as server,
        Caller(server.url) as caller,
    ):
        work_through(server, volume, count, count)  # so that each node has its process
        busy = _Busy(server, cluster)
        with _asking(server, MODELS) as asked:
            started = time.perf_counter()
            for _ in range(jobs):
                expect(202, caller.infer(volume, prefer="respond-async"))
            sent = time.perf_counter() - started
            _until(lambda: _none_waits_or_runs(caller), _LONGEST_SECONDS)
            took = time.perf_counter() - started
        cores = {part: seconds / took for part, seconds in busy.seconds().items()}
        once = _ended_well_and_once(server, caller)
    yield Figure(f"{name}: ended well, each after one run", once - count, at_least=jobs)
    yield Figure(
        f"{name}: jobs", jobs / took, "/s", note=f"{count / seconds:.3g}/s if nodes never waited"
    )
    yield Figure(f"{name}: accepted", jobs / sent, "/s", note="while runs went on")
    for part, share in cores.items():
        yield Figure(f"{name}: cores that {part} kept busy", share)
    yield from spread(f"{name}: GET of the model list meanwhile", asked(), p99_at_most=50)


def _cost(task: Task) -> Iterator[Figure]:
    """A run that waits for nothing, here and on a node, in turn."""
    # Made before: a connection does not stay open while nothing is sent.
    volumes = {size: _volume(int(size * _MEGABYTE)) for size in (0.5, 5, 50)}
    with (
        nodes(1, object_store=1000 * _MEGABYTE) as cluster,
        _on(cluster, task.folder / "ray", 0.0, slots=1) as on_ray,
        _waiting(task.folder / "warm", 0.0, executor="warm") as here,
        Caller(on_ray.url) as by_ray,
        Caller(here.url) as by_warm,
    ):
        for megabytes, volume in volumes.items():
            by_ray.infer(volume), by_warm.infer(volume)  # later ones find what these needed
            busy = _Busy(on_ray, cluster)
            pairs = [
                [expect(200, each.infer(volume)).seconds for each in (by_ray, by_warm)]
                for _ in range(task.either(15, 3))
            ]
            ray, warm = (median(each) for each in zip(*pairs, strict=True))
            extra = median(a - b for a, b in pairs)
            note = f"{ray:.2f} s instead of {warm:.2f} s, {len(pairs)} pairs"
            most = 0.5 if megabytes == 50 else None
            name = f"a job of {megabytes:g} MB"
            yield Figure(f"{name} costs more on Ray by", extra, "s", at_most=most, note=note)
            for part, seconds in busy.seconds().items():
                yield Figure(f"{name}: processor time of {part}", seconds / len(pairs), "s")


@contextmanager
def _on(
    cluster: Cluster, workspace: Path, seconds: float, slots: int, **settings: Any
) -> Iterator[Server]:
    """Serve by a cluster, once all its slots are there."""
    of_ray = {"executor": "ray", "ray_address": cluster.address, "devices": "auto"}
    with _waiting(workspace, seconds, **of_ray, **settings) as server:
        _until(lambda: _nodes_of(server) == slots, 120)
        yield server


@contextmanager
def _waiting(workspace: Path, seconds: float, **settings: Any) -> Iterator[Server]:
    """Serve with runs that wait so long."""
    seed_model(workspace, content=str(seconds).encode())
    with serving(workspace, _PLUGIN, **settings) as server:
        yield server


def _nodes_of(server: Server) -> int:
    return len(server.http.get("/spleenseg/inference/device").json()["devices"])


def _volume(size: int) -> bytes:
    """A `.nii.gz` of about so many bytes: noise of 12 bits, which gzip hardly makes smaller."""
    voxels = int(size / 1.68)
    side = min(512, round(voxels ** (1 / 3)))
    shape = (side, side, round(voxels / side**2))
    noise = np.random.default_rng(7).integers(-1024, 3072, shape, np.int16)
    return content(nib.Nifti1Image(noise, np.eye(4)))


def _until(holds: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError("it never became true")
        time.sleep(0.2)


def _pages(caller: Caller, query: str) -> Iterator[dict[str, Any]]:
    """The jobs of all pages."""
    cursor = ""
    while True:
        page = json.loads(expect(200, caller.get(f"/api/v1/jobs?limit=500{query}{cursor}")).body)
        yield from page["jobs"]
        if not page["next"]:
            return
        cursor = f"&cursor={page['next']}"


def _none_waits_or_runs(caller: Caller) -> bool:
    asked = (caller.get(f"/api/v1/jobs?limit=1&state={state}") for state in ("queued", "running"))
    return not any(json.loads(expect(200, answer).body)["jobs"] for answer in asked)


def _ended_well_and_once(server: Server, caller: Caller) -> int:
    """How many jobs did, by their records and by what their runs printed."""
    logs = server.workspace / "jobs"
    return sum(
        job["attempts"] == 1 and (logs / job["id"] / "plugin.log").read_text().count("waits") == 1
        for job in _pages(caller, "&state=succeeded")
    )


class _Busy:
    """The processor time of the server, of its processes, and of Ray's; from when it is made."""

    def __init__(self, server: Server, cluster: Cluster) -> None:
        self._web = psutil.Process(server.process.pid)
        self._cluster = cluster
        self._before = self._now()

    def seconds(self) -> dict[str, float]:
        """That of each, since then."""
        return {part: now - self._before[part] for part, now in self._now().items()}

    def _now(self) -> dict[str, float]:
        web = self._web.cpu_times()
        nodes_and_runs = {
            each for one in self._cluster.processes for each in (one, *one.children(recursive=True))
        }
        return {
            "the web process": web.user + web.system,
            "its process for Ray": _cpu_seconds(self._web.children(recursive=True)),
            "Ray's nodes and their runs": _cpu_seconds(nodes_and_runs),
        }


def _cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Of these, and of children of theirs that have ended."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


@contextmanager
def _asking(server: Server, path: str) -> Iterator[Callable[[], list[float]]]:
    """GET from another process meanwhile; afterwards, the call returns the seconds of each."""
    asks = subprocess.Popen(
        [sys.executable, "-m", "bench.asks", server.url, path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert asks.stdout
    asks.stdout.readline()
    told: list[float] = []
    try:
        yield lambda: told
        answers, _ = asks.communicate(timeout=60)
        told += json.loads(answers)
    finally:
        asks.kill()
        asks.wait()
