"""Nothing is lost, whenever the server dies."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pfms.processes.marks import WORKSPACE_MARK, find_marked
from pfms.storage.workspace import Workspace
from tests.conftest import Server, StartServer, eventually, nifti_bytes
from tests.test_jobs_api import ended, events_of, show, submit, until

VOLUME = nifti_bytes()


def processes_of(workspace: Path) -> list[int]:
    """The living plugin processes of a workspace."""
    return [
        marked.pid
        for marked in find_marked(WORKSPACE_MARK, Workspace(workspace).mark)
        if psutil.pid_exists(marked.pid)
        and psutil.Process(marked.pid).status() != psutil.STATUS_ZOMBIE
    ]


def all_jobs(server: Server) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": 1000}
    while True:
        page = server.http.get("/jobs", params=query).json()
        jobs += page["jobs"]
        if page["next"] is None:
            return jobs
        query["cursor"] = page["next"]


def test_queued_jobs_run_after_a_kill_and_the_running_one_runs_again(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py")
    running, *queued = [submit(server) for _ in range(3)]
    until(server, running, "running")
    server.stop(signal.SIGKILL)

    server = start_server("ok.py")
    for job_id in (running, *queued):
        assert ended(server, job_id)["state"] == "succeeded"
    assert show(server, running)["attempts"] == 2
    assert processes_of(server.workspace) == []


def test_a_job_whose_server_dies_too_often_fails_as_interrupted(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py")
    job_id = submit(server, headers={"Idempotency-Key": "k"})
    for _ in range(2):
        until(server, job_id, "running")
        server.stop(signal.SIGKILL)
        server = start_server("hangs.py")
    job = ended(server, job_id)
    assert (job["state"], job["error"]["code"]) == ("failed", "interrupted")
    assert submit(server, headers={"Idempotency-Key": "k"}) != job_id, "the key is free again"


def test_a_stop_requeues_the_running_job_and_tells_its_client(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", grace_seconds=1)
    job_id = submit(server)
    until(server, job_id, "running")
    assert server.stop() == 0
    assert processes_of(server.workspace) == []
    record = json.loads((server.workspace / "jobs" / job_id / "job.json").read_text())
    assert record["state"] == "queued"
    assert ended(start_server("ok.py"), job_id)["state"] == "succeeded"


def test_a_draining_server_still_listens_refuses_new_jobs_and_lets_the_running_one_end(
    start_server: StartServer,
) -> None:
    server = start_server("staged.py", drain_seconds=60)
    folder = server.workspace / "jobs"
    running, waiting = submit(server), submit(server)
    until(server, running, "running")
    server.process.terminate()
    ready = f"{server.url}/health/ready"
    while (answer := httpx.get(ready)).status_code == 200:
        time.sleep(0.02)
    assert "draining" in answer.json()["missing"]
    refused = server.infer()
    assert (refused.status_code, refused.json()["code"]) == (503, "not-ready")
    assert "Retry-After" in refused.headers
    for name in ("infer", "save", "end"):
        (folder / running / name).touch()
    assert server.process.wait(60) == 0
    states = {
        job_id: json.loads((folder / job_id / "job.json").read_text())["state"]
        for job_id in (running, waiting)
    }
    assert states == {running: "succeeded", waiting: "queued"}


def test_a_second_signal_stops_at_once(start_server: StartServer) -> None:
    server = start_server("hangs.py", drain_seconds=600, grace_seconds=1)
    job_id = submit(server)
    until(server, job_id, "running")
    server.process.terminate()
    while httpx.get(f"{server.url}/health/ready").status_code == 200:
        time.sleep(0.02)
    server.process.terminate()
    assert server.process.wait(30) == 0
    record = json.loads((server.workspace / "jobs" / job_id / "job.json").read_text())
    assert record["state"] == "queued"


def test_an_attempt_counts_only_if_the_server_died(start_server: StartServer) -> None:
    server = start_server("hangs.py", max_attempts=2)
    job_id = submit(server)
    until(server, job_id, "running")
    for how in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        server.stop(how)
        server = start_server("hangs.py", max_attempts=2)
        until(server, job_id, "running")
    assert show(server, job_id)["attempts"] == 2
    server.stop(signal.SIGKILL)
    server = start_server("hangs.py", max_attempts=2)
    assert ended(server, job_id)["error"]["code"] == "interrupted"


@pytest.mark.parametrize("executor", ["fresh", "warm"])
def test_stopping_all_processes_at_once_loses_no_job_and_waits_for_nothing(
    start_server: StartServer, executor: str
) -> None:
    server = start_server("hangs.py", executor=executor, drain_seconds=600, max_attempts=1)
    job_id = submit(server)
    until(server, job_id, "running")
    eventually(lambda: "hanging" in httpx.get(f"{server.url}/api/v1/jobs/{job_id}/log").text)
    # As systemd does; the server gets the signal last.
    for pid in [*processes_of(server.workspace), server.process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    assert server.process.wait(20) == 0
    record = json.loads((server.workspace / "jobs" / job_id / "job.json").read_text())
    assert (record["state"], record["attempts"], record["error"]) == ("queued", 0, None)


def test_a_job_waits_while_another_program_locks_the_table(start_server: StartServer) -> None:
    server = start_server("staged.py")
    first, second = submit(server), submit(server)
    until(server, first, "running")
    table = sqlite3.connect(server.workspace / "pfms.db", isolation_level=None)
    table.execute("BEGIN IMMEDIATE")
    for job_id in (first, second):
        for name in ("infer", "save", "end"):
            (server.workspace / "jobs" / job_id / name).touch()
    time.sleep(6)  # longer than SQLite waits by itself
    table.execute("ROLLBACK")
    table.close()
    for job_id in (first, second):
        assert ended(server, job_id)["state"] == "succeeded"


def test_a_workspace_has_the_same_mark_under_every_path(tmp_path: Path) -> None:
    for name in ("one", "other"):
        Workspace(tmp_path / name).make()
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert Workspace(tmp_path / "link").mark == Workspace(tmp_path / "one").mark
    assert Workspace(tmp_path / "other").mark != Workspace(tmp_path / "one").mark


def test_what_was_being_received_is_cleared_at_the_start(start_server: StartServer) -> None:
    server = start_server()
    server.stop(signal.SIGKILL)
    uploads = server.workspace / "uploads"
    (uploads / ("a" * 32)).write_bytes(b"x")
    (uploads / f"{'b' * 32}.{'c' * 32}.part").write_bytes(b"x")
    (uploads / ("d" * 32) / "input").mkdir(parents=True)
    server = start_server()
    assert list(uploads.iterdir()) == []


def test_other_peoples_files_in_the_workspace_are_left_alone(start_server: StartServer) -> None:
    server = start_server()
    server.stop()
    theirs = [server.workspace / "uploads" / "2024-study" / "patients.csv"]
    for name in ("model.json", "model.json.part"):
        theirs.append(server.workspace / "models" / "resnet" / name)
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"not": "ours"}')
    server = start_server()
    assert [path.read_text() for path in theirs] == ['{"not": "ours"}'] * 3
    assert "left alone" in server.log.read_text()


def test_a_half_written_record_is_replaced_by_the_next_one(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    job_id = submit(server)
    until(server, job_id, "running")
    server.stop(signal.SIGKILL)
    half = server.workspace / "jobs" / job_id / f".job.json.{'a' * 32}.part"
    half.write_text('{"id": "')
    server = start_server("ok.py")
    assert ended(server, job_id)["state"] == "succeeded"
    assert not half.exists()


def test_a_cancel_is_remembered_even_if_the_server_dies(start_server: StartServer) -> None:
    server = start_server("ignores_term.py", grace_seconds=30)
    job_id = submit(server)
    until(server, job_id, "running")
    server.http.post(f"/jobs/{job_id}/cancel")
    assert show(server, job_id)["cancel_requested"] is True
    server.stop(signal.SIGKILL)
    server = start_server("ok.py")
    assert ended(server, job_id)["state"] == "cancelled"
    assert processes_of(server.workspace) == []


def crash_and_count(start_server: StartServer, jobs: int, kills: int) -> None:
    """Kill the server at random moments while jobs are sent; then check that each ended once."""
    rng = random.Random(0)
    server = start_server("slow.py", max_attempts=1000)
    told: list[str] = []
    per_life = max(1, jobs // (kills + 1))
    for _ in range(kills):
        sent = 0
        deadline = time.monotonic() + rng.uniform(0.05, 1.5)
        while time.monotonic() < deadline:
            if sent < per_life and len(told) < jobs:
                told.append(submit(server, content=VOLUME))
                sent += 1
            else:
                time.sleep(0.005)
        server.stop(signal.SIGKILL)
        server = start_server("slow.py", max_attempts=1000)
    while len(told) < jobs:
        told.append(submit(server, content=VOLUME))

    for job_id in told:
        job = ended(server, job_id)
        assert job["state"] == "succeeded", job
        states = [one["state"] for one in events_of(server, job_id) if one["event"] == "state"]
        assert states.count("succeeded") == 1, states
    known = {job["id"]: job for job in all_jobs(server)}
    assert set(told) <= set(known), "what was acknowledged is on record"
    assert {job["state"] for job in known.values()} <= {"succeeded"}
    assert {folder.name for folder in server.job_folders()} == set(known)
    server.stop()
    assert processes_of(server.workspace) == []
    left = [
        path
        for path in server.workspace.rglob("*")
        if path.name.endswith(".part") or path.parent.name == "uploads"
    ]
    assert left == []


@pytest.mark.every  # most of a minute; others kill a server at one moment each
@pytest.mark.timeout(300)
def test_a_server_killed_now_and_then_loses_nothing(start_server: StartServer) -> None:
    crash_and_count(start_server, jobs=20, kills=5)


@pytest.mark.every
@pytest.mark.timeout(1800)
def test_a_server_killed_fifty_times_under_200_jobs_loses_nothing(
    start_server: StartServer,
) -> None:
    crash_and_count(start_server, jobs=200, kills=50)


def test_a_job_whose_folder_someone_removed_still_ends(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    job_id, waiting = submit(server), submit(server)
    until(server, job_id, "running")
    shutil.rmtree(server.workspace / "jobs" / job_id)
    shutil.rmtree(server.workspace / "jobs" / waiting)
    server.http.post(f"/jobs/{job_id}/cancel")
    assert ended(server, job_id)["state"] == "cancelled"
    assert ended(server, waiting)["state"] == "failed"
