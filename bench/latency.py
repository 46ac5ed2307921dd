"""`GET` of the model list while runs of the real plugin use both cores."""

import time

from bench.figures import Figure, Task, spread
from bench.load import MODELS, Caller, executors, expect, serving
from bench.volumes import clinical, content, phantom_3mm

_PAUSE_SECONDS = 0.02


def measure(task: Task) -> list[Figure]:
    """Call repeatedly from the start of the first run to the end of the last."""
    # of a clinical size, so that checking it and writing labels are a load too
    volume = content((phantom_3mm() if task.quick else clinical()).volume)
    seconds: list[float] = []
    wanted = task.either(600, 100)
    with (
        serving(task.folder, "spleenseg", executor=executors()[-1]) as server,
        Caller(server.url) as caller,
    ):
        last = ""
        while len(seconds) < wanted:
            last = server.submit(volume)
            while server.job(last)["state"] in ("queued", "running"):
                for _ in range(25):
                    seconds.append(expect(200, caller.get(MODELS)).seconds)
                    time.sleep(_PAUSE_SECONDS)
        if server.job(last)["state"] != "succeeded":
            raise AssertionError(server.job(last))
    return spread("GET of the model list beside a run", seconds, p99_at_most=20)
