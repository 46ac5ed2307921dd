"""A hundred thousand jobs on record: a page of the list, filtered, and a start of the server."""

import json
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from bench.figures import Figure, Task, spread
from bench.load import Caller, expect, serving
from pfms.clock import iso
from pfms.jobs.job import Job, State
from pfms.jobs.table import Records
from pfms.storage.workspace import Workspace
from tests.conftest import start

_EVENTS_EACH = 5  # queued, running, two of progress, the end
_MODELS = 10


def measure(task: Task) -> list[Figure]:
    """Run one job, put many like it on record, start again and ask for pages."""
    count = task.either(100_000, 5_000)
    with serving(task.folder) as server:
        server.ended(server.submit())
    _multiply(task.folder, count)

    starts = []
    for _ in range(3):
        started = time.perf_counter()
        server = start(task.folder, "empty.py")
        starts.append(time.perf_counter() - started)
        server.stop()

    with serving(task.folder) as server, Caller(server.url) as caller:
        # one in twenty failed: somewhere among these
        middle = server.http.get("/jobs", params={"state": "failed", "limit": count // 100}).json()[
            "next"
        ]
        kinds = {
            "all": "",
            "state": "state=failed",
            "model": "modelID=model-3",
            "state and model": "state=cancelled&modelID=model-3",
            "state, later page": f"state=failed&cursor={middle}",
            "none found": "state=running&modelID=model-3",
        }
        seconds = {
            kind: [
                expect(200, caller.get(f"/api/v1/jobs?{query}")).seconds
                for _ in range(task.either(50, 10))
            ]
            for kind, query in kinds.items()
        }
        whole = json.loads(expect(200, caller.get("/api/v1/jobs?state=failed")).body)
        if len(whole["jobs"]) != 50:
            raise AssertionError(f"a page has {len(whole['jobs'])} jobs")
        shutil.rmtree(task.folder / "jobs", ignore_errors=True)
    every = [each for values in seconds.values() for each in values]
    return [
        *spread(f"a page of 50 of {count:,} jobs", every, p99_at_most=50),
        *(
            Figure(f"a page, by {kind}, median", 1000 * median(values), "ms")
            for kind, values in seconds.items()
        ),
        Figure(f"start to listening with {count:,} jobs, median", median(starts), "s", at_most=2),
    ]


def _multiply(workspace: Path, count: int) -> None:
    """Write folders and rows of so many jobs, like the one there is."""
    place = Workspace(workspace)
    [template] = [
        Job.model_validate_json(place.job(job_id).record.read_bytes()) for job_id in place.job_ids()
    ]
    for job in _like(template, count):
        tree = place.job(job.id)
        tree.root.mkdir()
        tree.record.write_text(job.model_dump_json(indent=2))
    table = Records(place)
    table.open()  # reads the folders, and makes one event for each
    table.close()
    with closing(sqlite3.connect(workspace / "pfms.db")) as connection, connection:
        more = json.dumps(list(range(1, _EVENTS_EACH)))
        connection.execute(
            "INSERT INTO events SELECT n - 1000000000000 * more.value, job_id, kind, data "
            "FROM events, json_each(?) AS more",
            (more,),
        )


def _like(template: Job, count: int) -> Iterator[Job]:
    """One every minute up to now, of several models, one in ten without a result."""
    most: State = "succeeded"
    states: list[State] = [*[most] * 18, "failed", "cancelled"]
    begin = datetime.now(UTC) - timedelta(minutes=count)
    for n in range(count):
        moment = begin + timedelta(minutes=n)
        model_id = f"model-{n // len(states) % _MODELS}"
        told = {"created_at": iso(moment), "started_at": iso(moment), "ended_at": iso(moment)}
        yield template.model_copy(
            update={
                **told,
                "id": f"{moment:%Y-%m-%d-%H-%M-%S}-{uuid.uuid4()}",
                "state": states[n * 7 % len(states)],
                "model": template.model.model_copy(update={"modelID": model_id}),
            }
        )
