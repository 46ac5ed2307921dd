"""Warm jobs in a row: memory, descriptors and processes of the server and its warm parent."""

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.figures import Figure, Skipped, Task
from bench.load import MIB, Caller, executors, expect, family, open_files, proportional, serving
from bench.volumes import content
from examples.phantoms import make_phantom
from tests.conftest import Server, nifti_bytes

_REST_SECONDS = 2  # a run's memory is freed while its answer is on the way


@dataclass(frozen=True)
class _Held:
    """What the server and its other processes hold when nothing runs. Memory in MiB."""

    server: float
    others: float
    files: int
    processes: int
    threads: int


def measure(task: Task) -> list[Figure]:
    """Run with a fake plugin and with the real one; the first jobs do not count."""
    if "warm" not in executors():
        raise Skipped("there is no warm executor yet")
    fake = _soak(
        task.folder / "fake", "empty.py", nifti_bytes(), task.either(100, 10), task.either(200, 20)
    )
    small = make_phantom(7, (48, 40, 32), (5.0, 5.0, 6.0)).volume
    real = _soak(
        task.folder / "real", "spleenseg", content(small), task.either(20, 1), task.either(200, 1)
    )
    return [*_grown("fake plugin", *fake), *_grown("real plugin", *real)]


def _soak(
    workspace: Path, plugin: str, volume: bytes, before: int, jobs: int
) -> tuple[_Held, _Held, int]:
    with serving(workspace, plugin, executor="warm") as server:
        _send(server, volume, before)
        first = _held(server)
        _send(server, volume, jobs)
        return first, _held(server), jobs


def _send(server: Server, volume: bytes, times: int) -> None:
    with Caller(server.url) as caller:
        for _ in range(times):
            expect(200, caller.infer(volume))


def _held(server: Server) -> _Held:
    time.sleep(_REST_SECONDS)
    processes = family(server.process.pid)
    web, *others = (process.pid for process in processes)
    return _Held(
        server=proportional(web) / MIB,
        others=sum(map(proportional, others)) / MIB,
        files=sum(open_files(pid) for pid in (web, *others)),
        processes=len(processes),
        threads=psutil.Process(web).num_threads(),
    )


def _grown(name: str, first: _Held, last: _Held, jobs: int) -> list[Figure]:
    name = f"{name}, {jobs} warm jobs"
    web, others = last.server - first.server, last.others - first.others
    return [
        Figure(f"{name}: server's memory grows by", web, "MB", 5, note=f"to {last.server:.0f} MB"),
        Figure(f"{name}: parent's by", others, "MB", 5, note=f"to {last.others:.0f} MB"),
        Figure(f"{name}: descriptors", last.files - first.files, "", 0, note=f"{last.files} open"),
        Figure(f"{name}: processes", last.processes - first.processes, "", 0),
        Figure(f"{name}: threads", last.threads - first.threads, "", note=f"{last.threads} now"),
    ]
