"""Jobs per second, from the upload to the result, by slots: an empty fake, and the real plugin."""

import threading
import time
from collections.abc import Iterator

from bench.figures import Figure, Task
from bench.load import Caller, executors, expect, serving
from bench.volumes import content, phantom_3mm
from tests.conftest import Server, nifti_bytes

_SLOTS = (1, 2, 4)  # they share the cores


def measure(task: Task) -> list[Figure]:
    """Make blocking calls with two more clients than slots, so that one always waits."""
    jobs = task.either(200, 30)
    figures = []
    volume = nifti_bytes()
    for executor in executors():
        for slots in _SLOTS:
            folder = task.folder / f"{executor}-{slots}"
            with serving(folder, "empty.py", executor=executor, jobs_per_device=slots) as server:
                _run(server, volume, 10, slots + 2)
                rate = jobs / _run(server, volume, jobs, slots + 2)
            name = f"{executor}, {slots} slot{'s' * (slots > 1)}"
            at_least = 20 if executor == executors()[-1] else None
            figures.append(Figure(name, rate, "/s", at_least=at_least, note=f"{jobs} jobs"))
    return figures + _real(task)


def _real(task: Task) -> list[Figure]:
    """One slot has all the cores; with more, a run computes while another reads or writes."""
    jobs = task.either(24, 4)
    volume = content(phantom_3mm().volume)
    figures = []
    for slots in _SLOTS:
        folder = task.folder / f"real-{slots}"
        with serving(
            folder, "spleenseg", executor=executors()[-1], jobs_per_device=slots
        ) as server:
            _run(server, volume, slots, slots)
            rate = jobs / _run(server, volume, jobs, slots + 2)
        name = f"the real plugin on a phantom, {slots} slot{'s' * (slots > 1)}"
        figures.append(Figure(name, rate, "/s", note=f"{jobs} jobs"))
    return figures


def _run(server: Server, volume: bytes, jobs: int, clients: int) -> float:
    """Seconds until all of them have returned."""
    turns: Iterator[int] = iter(range(jobs))
    failures: list[BaseException] = []

    def call() -> None:
        try:
            with Caller(server.url) as caller:
                while next(turns, None) is not None:
                    expect(200, caller.infer(volume))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failures:
        raise failures[0]
    return seconds
