"""The server from start to listening, and what it and all its processes hold when idle."""

import time
from statistics import median

from bench.figures import Figure, Task
from bench.load import MIB, executors, family, proportional, resident, serving
from tests.conftest import start


def measure(task: Task) -> list[Figure]:
    """Start with the real plugin; the first start, which creates the table, counts separately."""
    executor = executors()[-1]
    seconds = []
    for _ in range(task.either(6, 3)):
        started = time.perf_counter()
        server = start(task.folder, "spleenseg", executor=executor)
        seconds.append(time.perf_counter() - started)
        server.stop()
    with serving(task.folder, "spleenseg", executor=executor) as server:
        time.sleep(3)  # until everything has settled
        pid = server.process.pid
        everything = family(pid)
        whole = sum(proportional(process.pid) for process in everything) / MIB
        web, web_share = resident(pid) / MIB, proportional(pid) / MIB
    note = f"PSS of {len(everything)} processes, executor {executor}"
    return [
        Figure("start to listening, empty workspace", seconds[0], "s", at_most=2),
        Figure("start to listening, median", median(seconds[1:]), "s", at_most=2),
        Figure("web process, idle", web, "MB", at_most=120, note=f"RSS; PSS {web_share:.0f} MB"),
        Figure("everything, idle", whole, "MB", at_most=600, note=note),
    ]
