"""Five hundred clients read the events of running jobs: the server's memory and latency."""

import json
import subprocess
import sys
import time
from urllib.parse import urlsplit

from bench.figures import Figure, Task, spread
from bench.load import (
    FAKES,
    MIB,
    MODELS,
    Caller,
    executors,
    expect,
    forget_peak,
    peak,
    resident,
    serving,
)
from tests.conftest import ROOT, nifti_bytes

_JOBS = 10
_PAUSE_SECONDS = 0.01


def measure(task: Task) -> list[Figure]:
    """Ten jobs at a time, which report their stages until they end."""
    clients = task.either(500, 50)
    with (
        serving(
            task.folder,
            FAKES / "tells_stages.py",
            jobs_per_device=_JOBS,
            executor=executors()[-1],
        ) as server,
        Caller(server.url) as caller,
    ):
        pid = server.process.pid
        idle = resident(pid) / MIB
        place = urlsplit(server.url)
        jobs = [server.submit(nifti_bytes()) for _ in range(_JOBS)]
        forget_peak(pid)
        following = subprocess.Popen(
            [sys.executable, "-m", "bench.event_clients", str(place.hostname), str(place.port)]
            + [jobs[i % _JOBS] for i in range(clients)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert following.stdout
        started = time.perf_counter()
        try:
            if following.stdout.readline() != "listening\n":
                raise AssertionError("the clients could not connect")
            connected = time.perf_counter() - started
            seconds: list[float] = []
            while following.poll() is None:
                seconds.append(expect(200, caller.get(MODELS)).seconds)
                time.sleep(_PAUSE_SECONDS)
            told = json.loads(following.stdout.readline())
        finally:
            following.kill()
            following.wait()
            following.stdout.close()
        highest = peak(pid) / MIB
        expected = sum(len(server.ended(job)) > 0 for job in jobs)
        if told["ended"] != clients or expected != _JOBS:
            raise AssertionError(f"{told}: not every client saw the end")
    return [
        Figure("clients that were told of the end", told["ended"], note=f"{told['events']} events"),
        Figure("all connected after", connected, "s"),
        Figure("server's memory, highest", highest, "MB", at_most=250, note=f"idle {idle:.0f} MB"),
        *spread("GET of the model list meanwhile", seconds, p99_at_most=50),
    ]
