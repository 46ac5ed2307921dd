"""A job whose end cannot be recorded keeps neither a slot nor a caller waiting."""

from pathlib import Path

from tests.conftest import Server, StartServer, eventually


def spoil(server: Server, job_id: str) -> Path:
    """Put a folder where the job's next record is written, so that no write can succeed."""
    part = server.workspace / "jobs" / job_id / ".job.json.part"
    part.mkdir()
    (part / "something").touch()
    return part


def mend(part: Path) -> None:
    (part / "something").unlink()
    part.rmdir()


def running(server: Server) -> str:
    job_id = server.submit()
    eventually(lambda: "hanging" in server.http.get(f"/jobs/{job_id}/log").text)
    return job_id


def test_a_slot_is_freed_even_if_the_end_of_its_job_cannot_be_recorded(
    start_server: StartServer,
) -> None:
    server = start_server("holds_first.py", job_timeout_seconds=1)
    stuck = running(server)
    part = spoil(server, stuck)
    for _ in range(3):
        assert server.infer(timeout=20).status_code in (200, 504)  # it was given a slot
    assert server.job(stuck)["state"] == "running"
    mend(part)
    job = server.ended(stuck)
    assert (job["state"], job["error"]["code"]) == ("failed", "timed-out")


def test_a_job_whose_end_cannot_be_recorded_is_resumed_by_the_next_server(
    start_server: StartServer,
) -> None:
    server = start_server("holds_first.py", job_timeout_seconds=1)
    stuck = running(server)
    part = spoil(server, stuck)
    server.infer(timeout=20)  # the slot is free: only the recording is being retried
    assert server.stop() == 0
    mend(part)
    server = start_server("ok.py")
    assert server.ended(stuck)["state"] == "succeeded"
