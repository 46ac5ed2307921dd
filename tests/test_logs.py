"""The log of a real server: for people, or one JSON object a line that names its job."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.command import pfms
from tests.conftest import Server, StartServer, eventually, nifti_bytes

Line = dict[str, Any]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def lines_of(server: Server) -> list[Line]:
    """Every line, each of which has to be one object."""
    lines: list[Line] = [json.loads(line) for line in server.log.read_text().splitlines()]
    for line in lines:
        assert list(line)[:4] == ["time", "level", "logger", "message"]
        assert TIME.fullmatch(line["time"])
    return lines


def calls_in(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line["logger"] == "uvicorn.access"]


def test_each_line_is_an_object_and_names_the_job_that_it_is_about(
    start_server: StartServer,
) -> None:
    server = start_server(log_format="json")
    job_id = server.infer(headers={"Idempotency-Key": "k"}).headers["X-Pfms-Job"]
    server.infer(headers={"Idempotency-Key": "k"})
    server.http.get(f"/jobs/{job_id}/result?resultant=labels")
    server.http.get("/about?a-secret-query")
    eventually(lambda: len(calls_in(lines_of(server))) == 4)

    *of_job, other = calls_in(lines_of(server))
    assert [line["job"] for line in of_job] == [job_id] * 3
    assert "job" not in other
    assert {k: other[k] for k in ("method", "path", "status", "level")} == {
        "method": "GET",
        "path": "/api/v1/about",
        "status": 200,
        "level": "INFO",
    }
    assert all(re.fullmatch("[0-9a-f]{32}", line["trace_id"]) for line in (*of_job, other))
    assert "a-secret-query" not in server.log.read_text()


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_query_and_no_file_name_is_logged(start_server: StartServer, form: str) -> None:
    server = start_server(log_format=form)
    files = {"file": ("SMITH^JOHN.nii.gz", nifti_bytes())}
    for path in ("/spleenseg/NIfTIinference", "/spleenseg/modelpth", "/nothing"):
        server.http.post(path, params={"modelID": "demo", "token": "hunter2"}, files=files)
    eventually(lambda: "/nothing" in server.log.read_text())

    assert "hunter2" not in server.log.read_text()
    assert "SMITH" not in server.log.read_text()


def test_a_start_names_the_job_that_it_warns_of(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", log_format="json", max_attempts=1)
    job_id = server.submit()
    eventually(lambda: server.job(job_id)["state"] == "running")
    server.process.kill()
    server.stop()
    server.log.unlink()
    damaged = server.workspace / "jobs" / job_id.replace("2", "1", 1)
    damaged.mkdir()
    (damaged / "job.json").write_text("{")
    server = start_server("ok.py", log_format="json", max_attempts=1)

    said = {line.get("job"): line for line in lines_of(server) if line["level"] == "WARNING"}
    assert "is now failed" in said[job_id]["message"]
    assert "cannot be read" in said[damaged.name]["message"]


def test_text_is_for_people_and_names_the_job_once(start_server: StartServer) -> None:
    server = start_server(log_format="text")
    job_id = server.infer().headers["X-Pfms-Job"]
    server.http.get(f"/jobs/{job_id}")
    eventually(lambda: server.log.read_text().count("HTTP/1.1") == 2)

    post, get = [line for line in server.log.read_text().splitlines() if "HTTP/1.1" in line]
    assert re.match(r"\d{4}-\d\d-\d\d \S+ INFO uvicorn\.access: \S+ - \"POST ", post)
    assert post.endswith(f"200 (job {job_id})")
    assert get.count(job_id) == 1


def test_a_format_that_is_not_known_is_refused(tmp_path: Path) -> None:
    assert "PFMS_LOG_FORMAT" in pfms("serve", cwd=tmp_path, code=2, log_format="xml").stderr


def test_a_traceback_is_part_of_its_line(start_server: StartServer) -> None:
    server = start_server(log_format="json")
    log = server.log.rename(server.workspace.parent / "server.log")
    shutil.rmtree(server.workspace)
    assert server.infer().status_code == 503
    lines = [json.loads(line) for line in log.read_text().splitlines()]

    assert any("Traceback" in line.get("exc_info", "") for line in lines)
