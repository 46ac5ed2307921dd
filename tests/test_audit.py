"""The audit log of a real server: what is in it, what is not, and what happens to the file."""

import json
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from pfms.access.audit import AuditLog
from pfms.errors import StartError
from tests.command import pfms
from tests.conftest import Server, StartServer, eventually, nifti_bytes
from tests.tokens import add, bearer
from tests.wire import Wire

SECRET = "DOE^JANE"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def noted(audit: Path, /, **facts: Any) -> dict[str, Any]:
    """The line with these facts, once it is there."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines_of(audit) if facts.items() <= line.items()]

    eventually(found)
    return found()[0]


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def audited(start_server: StartServer, audit: Path) -> Server:
    return start_server(audit_log=audit)


def test_a_run_is_noted_from_its_call_to_its_end(audited: Server, audit: Path) -> None:
    job_id = audited.submit()
    job = audited.ended(job_id)

    call = noted(audit, event="call", job=job_id, method="POST")
    assert call["path"] == "/api/v1/spleenseg/NIfTIinference"
    assert (call["status"], call["model"], call["address"]) == (202, "demo", "127.0.0.1")
    accepted = noted(audit, event="job", job=job_id, state="queued")
    assert accepted["model_sha256"] == job["model"]["sha256"]
    assert accepted["volume_sha256"] == job["volume"]["sha256"]
    assert noted(audit, event="job", job=job_id, state="succeeded")["attempts"] == 1
    assert noted(audit, event="call", path="/api/v1/jobs/{job_id}", job=job_id)["status"] == 200
    audited.http.get(f"/jobs/{job_id}/volume")
    volume = noted(audit, event="call", path="/api/v1/jobs/{job_id}/volume", job=job_id)
    assert volume["status"] == 200


def test_a_run_that_fails_is_noted_with_its_cause(start_server: StartServer, audit: Path) -> None:
    server = start_server("exit3.py", audit_log=audit)
    assert server.infer().status_code == 500
    noted(audit, event="job", state="failed", code="plugin-failed")
    noted(audit, event="call", status=500, code="plugin-failed", model="demo")


def test_refusals_are_noted_those_on_the_wire_too(audited: Server, audit: Path) -> None:
    audited.infer(b"no volume")
    noted(audit, event="call", status=422, code="not-a-nifti")
    audited.http.get("/jobs/none")
    noted(audit, event="call", status=404, code="job-not-found")
    audited.http.get("/about", headers={"Host": "evil.example"})
    noted(audit, event="call", status=421, code="wrong-host")
    audited.http.get("/nowhere")
    noted(audit, event="call", status=404, code="not-found")
    with Wire(audited.url) as wire:
        wire.send(b"\x16\x03\x01 no HTTP\r\n\r\n")
        wire.answer()
    noted(audit, event="refused", status=400, code="invalid-parameter", address="127.0.0.1")


def test_a_call_that_is_refused_at_the_door_is_noted_by_its_path(
    start_server: StartServer, tmp_path: Path, audit: Path
) -> None:
    token = add(tmp_path / "tokens.json", "alice")
    server = start_server(audit_log=audit, tokens_file=tmp_path / "tokens.json")
    job = f"{server.url}/api/v1/jobs/2026-01-31-12-00-00-f81d4fae-7dec-41d0-a765-00a0c91e6bf6/log/"
    assert httpx.get(job).status_code == 401
    assert httpx.get(f"{server.url}/api/v1/{SECRET}").status_code == 401
    assert httpx.get(job, headers=bearer(token)).status_code == 404
    refused = noted(audit, event="call", path="/api/v1/jobs/{job_id}/log", status=401)
    assert (refused["code"], "caller" in refused) == ("unauthorized", False)
    allowed = noted(audit, event="call", path="/api/v1/jobs/{job_id}/log", status=404)
    assert allowed["caller"] == "alice"
    assert SECRET not in audit.read_text()


def test_nothing_that_a_client_can_word_is_noted(audited: Server, audit: Path) -> None:
    headers = {"User-Agent": SECRET, "Idempotency-Key": SECRET, "Authorization": f"Bearer {SECRET}"}
    audited.submit(headers=headers)
    audited.http.get(f"/jobs/{SECRET}", headers=headers)
    audited.http.get(f"/{SECRET}/{SECRET}")
    audited.infer(model=SECRET)
    audited.http.post("/spleenseg/NIfTIinference", params={"modelID": "demo", "x": SECRET})
    noted(audit, event="call", code="invalid-model-id")
    audited.stop()
    assert SECRET not in audit.read_text()
    assert "DOE" not in audit.read_text()


def test_probes_that_succeed_are_not_noted(audited: Server, audit: Path) -> None:
    audited.http.get(f"{audited.url}/health/ready")
    audited.http.get("/about")
    noted(audit, event="call", path="/api/v1/about")
    assert not [line for line in lines_of(audit) if str(line.get("path")).startswith("/health")]


def test_a_probe_that_is_refused_is_noted(start_server: StartServer, audit: Path) -> None:
    server = start_server(audit_log=audit, metrics="off")
    assert httpx.get(f"{server.url}/metrics").status_code == 404
    assert noted(audit, event="call", path="/metrics")["status"] == 404


def test_a_renamed_file_loses_no_line(audited: Server, audit: Path) -> None:
    names = []
    for number in range(5):
        for _ in range(10):
            audited.http.get("/about")
        names.append(audit.rename(audit.with_name(f"audit-{number}")) if audit.exists() else audit)
    audited.http.get("/jobs")
    noted(audit, event="call", path="/api/v1/jobs")
    audited.stop()
    files = {*names, audit}
    calls = [line for path in files for line in lines_of(path) if line["event"] == "call"]
    assert len(calls) == 51
    assert stat.S_IMODE(audit.stat().st_mode) == 0o640


def test_while_it_cannot_be_written_the_service_goes_on_and_says_so(
    audited: Server, audit: Path
) -> None:
    audited.http.get("/about")
    noted(audit, event="call")
    audit.rename(audit.with_name("old"))
    audit.mkdir()  # stands for whatever keeps a file from being written
    job_id = audited.submit(nifti_bytes())
    assert audited.ended(job_id)["state"] == "succeeded"

    def ready() -> dict[str, Any]:
        answer: dict[str, Any] = audited.http.get(f"{audited.url}/health/ready").json()
        return answer

    eventually(lambda: "audit-log" in ready()["missing"])
    assert "audit log cannot be written" in audited.log.read_text()
    audit.rmdir()
    noted(audit, event="job", job=job_id, state="succeeded")
    eventually(lambda: ready()["status"] == "ready")


def test_it_is_appended_to_after_a_restart(
    start_server: StartServer, audited: Server, audit: Path
) -> None:
    audited.http.get("/about")
    audited.stop()
    before = audit.read_text()
    assert before
    start_server(audit_log=audit).http.get("/jobs")
    noted(audit, event="call", path="/api/v1/jobs")
    assert audit.read_text().startswith(before)


@pytest.mark.parametrize("what", ["folder", "link", "nowhere"])
def test_a_file_that_cannot_be_opened_stops_the_start(
    what: str, tmp_path: Path, audit: Path
) -> None:
    if what == "folder":
        audit.mkdir()
    elif what == "link":
        audit.symlink_to(tmp_path / "elsewhere")
    path = audit / "no" / "folder" if what == "nowhere" else audit
    with pytest.raises(StartError, match="audit log"):
        AuditLog(path).open()
    assert not (tmp_path / "elsewhere").exists()


def test_the_command_says_what_is_wrong_with_it(tmp_path: Path, audit: Path) -> None:
    audit.mkdir()
    done = pfms("serve", cwd=tmp_path, code=2, audit_log=str(audit), port="0", devices="cpu")
    assert "PFMS_AUDIT_LOG" in done.stderr
