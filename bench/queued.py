"""POST of a small volume while a thousand jobs wait."""

from bench.figures import Figure, Task, spread
from bench.load import Caller, expect, serving
from tests.conftest import nifti_bytes


def measure(task: Task) -> list[Figure]:
    """Fill the queue, then send more."""
    volume = nifti_bytes()
    many, more = task.either(1000, 100), task.either(300, 50)
    with (
        serving(task.folder, "hangs.py", queue_limit=2 * (many + more)) as server,
        Caller(server.url) as caller,
    ):
        seconds = [
            expect(202, caller.infer(volume, prefer="respond-async")).seconds
            for _ in range(many + more)
        ]
        last = server.http.get("/jobs", params={"limit": 1}).json()["jobs"][0]
        if last["place"] != many + more - 2:  # one is running, and places begin at 0
            raise AssertionError(last)
        page = [expect(200, caller.get("/api/v1/jobs?state=queued")).seconds for _ in range(100)]
    return [
        *spread(f"POST while 0 to {many} wait", seconds[:many]),
        *spread(f"POST while {many} to {many + more} wait", seconds[many:], p99_at_most=100),
        *spread("GET of a page of those that wait", page),
    ]
