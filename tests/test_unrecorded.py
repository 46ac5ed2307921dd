"""A job whose end cannot be recorded keeps neither a slot nor a caller waiting."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import Server, StartServer, eventually


@dataclass
class Spoilt:
    """A jobs table that refuses the rows of one job, and the job's record as it was before."""

    table: Path
    record: Path
    content: bytes

    def mend(self) -> None:
        """Let the rows in again; the record has not been written either."""
        self.record.write_bytes(self.content)
        with closing(sqlite3.connect(self.table)) as table, table:
            table.execute("DROP TRIGGER spoilt")


def spoil(server: Server, job_id: str) -> Spoilt:
    """Make sure that nothing can be recorded of a job."""
    record = server.workspace / "jobs" / job_id / "job.json"
    spoilt = Spoilt(server.workspace / "pfms.db", record, record.read_bytes())
    with closing(sqlite3.connect(spoilt.table)) as table, table:
        table.execute(
            f"CREATE TRIGGER spoilt BEFORE INSERT ON jobs WHEN NEW.id = '{job_id}' "
            "BEGIN SELECT RAISE(ABORT, 'spoilt'); END"
        )
    return spoilt


def running(server: Server) -> str:
    job_id = server.submit()
    eventually(lambda: "hanging" in server.http.get(f"/jobs/{job_id}/log").text)
    return job_id


def test_a_slot_is_freed_even_if_the_end_of_its_job_cannot_be_recorded(
    start_server: StartServer,
) -> None:
    server = start_server("holds_first.py", job_timeout_seconds=1)
    stuck = running(server)
    spoilt = spoil(server, stuck)
    for _ in range(3):
        assert server.infer(timeout=20).status_code in (200, 504)  # it was given a slot
    assert server.job(stuck)["state"] == "running"
    spoilt.mend()
    job = server.ended(stuck)
    assert (job["state"], job["error"]["code"]) == ("failed", "timed-out")


def test_a_job_whose_end_cannot_be_recorded_is_resumed_by_the_next_server(
    start_server: StartServer,
) -> None:
    server = start_server("holds_first.py", job_timeout_seconds=1)
    stuck = running(server)
    spoilt = spoil(server, stuck)
    server.infer(timeout=20)  # the slot is free: only the recording is being retried
    assert server.stop() == 0
    spoilt.mend()
    server = start_server("ok.py")
    assert server.ended(stuck)["state"] == "succeeded"
