"""Starts with anything under `jobs/`: what cannot be read is left alone, everything else works."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server, StartServer, eventually
from tests.test_job import ID, job

NEWER = {"schema_version": 2, "hospital": {"ward": ["7b", 1, None]}}


def record_of(server: Server, job_id: str) -> Path:
    return server.workspace / "jobs" / job_id / "job.json"


def edit(record: Path, **fields: Any) -> None:
    content = json.loads(record.read_bytes())
    for name, value in fields.items():
        inside, _, last = name.rpartition("__")
        (content[inside] if inside else content)[last] = value
    record.write_text(json.dumps(content))


def strange(jobs: Path) -> dict[str, str]:
    """Make everything that may be there; returns the names that look like jobs."""
    good = job().model_dump_json()
    records: dict[str, bytes] = {
        "half": b"{",
        "empty": b"",
        "an array": b"[1, 2]",
        "no UTF-8": good.replace("demo", "d\udcffmo").encode(errors="surrogateescape"),
        "a lone surrogate": good.replace("demo", "d\\ud800mo").encode(),
        "100 MB": b'{"id": "' + b"x" * 100_000_000,
        "deep": b'{"id":' + b"[" * 500_000,
        "of another job": good.encode(),
        "a wrong revision": good.replace('"revision":1', '"revision":"one"').encode(),
        "a vast revision": good.replace('"revision":1', f'"revision":1{"0" * 30}').encode(),
        "another state": good.replace('"queued"', '"paused"').encode(),
    }
    names = {}
    for n, (kind, content) in enumerate(records.items()):
        name = names[kind] = f"{ID[:-2]}{n:02x}"
        (jobs / name).mkdir()
        (jobs / name / "job.json").write_bytes(
            content.replace(ID.encode(), name.encode()) if kind != "of another job" else content
        )
    for kind in ("a folder", "a pipe", "a link to nowhere", "nothing"):
        name = names[kind] = f"{ID[:-2]}{len(names):02x}"
        (jobs / name).mkdir()
        record = jobs / name / "job.json"
        if kind == "a folder":
            record.mkdir()
        elif kind == "a pipe":
            os.mkfifo(record)
        elif kind == "a link to nowhere":
            record.symlink_to("/nowhere/job.json")
    for other in ("notes", "lost+found", os.fsdecode(b"caf\xe9 \n")):
        (jobs / other).mkdir()
    (jobs / "loop").symlink_to("loop")
    (jobs / ".DS_Store").write_text("")
    return names


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_a_start_survives_whatever_is_under_jobs_and_leaves_it_unchanged(
    start_server: StartServer,
) -> None:
    server = start_server()
    good = server.ended(server.submit())
    server.stop()
    jobs = server.workspace / "jobs"
    names = strange(jobs)
    before = tree(jobs)
    for table in ("there", "missing"):
        if table == "missing":
            (server.workspace / "pfms.db").unlink()
        server = start_server()
        assert [one["id"] for one in server.http.get("/jobs").json()["jobs"]] == [good["id"]]
        assert server.job(good["id"]) == good
        for kind, name in names.items():
            assert server.http.get(f"/jobs/{name}").status_code == 404, kind
            assert name in server.log.read_text(), kind
        server.stop()
    assert tree(jobs) == before
    assert "Traceback" not in server.log.read_text()
    server = start_server()
    assert server.ended(server.submit())["state"] == "succeeded"


@pytest.mark.parametrize("became", ["garbage", "a folder"])
def test_an_active_job_whose_record_became_unreadable_is_left_alone_and_the_others_run(
    start_server: StartServer, became: str
) -> None:
    server = start_server("hangs.py")
    first, second = server.submit(), server.submit()
    eventually(lambda: server.job(first)["state"] == "running")
    server.stop(signal.SIGKILL)
    record = record_of(server, first)
    record.unlink()
    if became == "garbage":
        record.write_text("{")
    else:
        record.mkdir()
    server = start_server("ok.py")
    assert server.ended(second)["state"] == "succeeded"
    assert server.job(first)["state"] == "running"
    assert f"job {first} is left alone" in server.log.read_text()
    assert record.is_dir() or record.read_text() == "{"


def test_unknown_fields_do_not_stop_a_start_survive_a_write_and_are_not_shown(
    start_server: StartServer,
) -> None:
    server = start_server()
    done = server.ended(server.submit())
    server.stop()
    record = record_of(server, done["id"])
    extra = {f"{part}__colour": "blue" for part in ("model", "volume", "segmentation")}
    edit(record, **NEWER, **extra)
    for table in ("there", "missing"):
        if table == "missing":
            (server.workspace / "pfms.db").unlink()
        server = start_server()
        assert server.job(done["id"]) == done
        [listed] = server.http.get("/jobs").json()["jobs"]
        assert listed == done
        server.stop()
    server = start_server()
    answer = server.http.delete(f"/jobs/{done['id']}", params={"purge": "voxels"})
    assert answer.status_code == 204, answer.text
    written = json.loads(record.read_bytes())
    assert written["purged_at"]
    assert {name: written[name] for name in NEWER} == NEWER
    for part in ("model", "volume", "segmentation"):
        assert written[part]["colour"] == "blue"


def test_two_jobs_with_one_key_are_both_there_after_a_start(start_server: StartServer) -> None:
    server = start_server()
    key = {"Idempotency-Key": "k"}
    older = server.submit(headers=key)
    server.ended(older)
    server.stop()
    away = (server.workspace / "jobs" / older).rename(server.workspace / "away")
    server = start_server()
    newer = server.submit(headers=key)
    server.ended(newer)
    server.stop()
    away.rename(server.workspace / "jobs" / older)
    server = start_server()
    assert [one["id"] for one in server.http.get("/jobs").json()["jobs"]] == [newer, older]
    assert server.infer(headers=key).headers["x-pfms-job"] == newer
    assert f"{newer}, {older} share one Idempotency-Key" in server.log.read_text()


def test_a_removed_folder_is_not_recreated_when_its_run_ends(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py")
    running, waiting = server.submit(), server.submit()
    eventually(lambda: server.job(running)["state"] == "running")
    for job_id in (running, waiting):
        shutil.rmtree(server.workspace / "jobs" / job_id)
    server.http.post(f"/jobs/{running}/cancel")
    assert server.ended(running)["state"] == "cancelled"
    assert server.ended(waiting)["state"] == "failed"
    assert server.job_folders() == []
    server.stop()
    server = start_server()
    assert server.http.get("/jobs").json()["jobs"] == []
    assert server.job_folders() == []
