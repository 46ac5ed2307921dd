"""The W3C traceparent: from a request through the job and its run to the log."""

import json
from pathlib import Path

import pytest

from pfms import trace
from tests.conftest import PLUGINS, Server, StartServer, eventually

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
REJECTED = [
    "",
    "00",
    PARENT.upper(),
    f" {PARENT} x",
    PARENT.replace("00-", "ff-", 1),
    f"00-{'0' * 32}-00f067aa0ba902b7-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"{PARENT}-more",
    PARENT[:-1],
    f"{PARENT}\n",
    f"{PARENT.replace('00-', '0g-', 1)}",
]


@pytest.mark.parametrize("header", REJECTED)
def test_a_header_that_is_not_valid_is_not_taken(header: str) -> None:
    assert trace.valid(header) is None


@pytest.mark.parametrize(
    "header", [PARENT, PARENT.replace("00-", "01-", 1), f"{PARENT.replace('00-', 'cc-', 1)}-what"]
)
def test_a_later_version_is_read_as_far_as_it_is_known(header: str) -> None:
    assert trace.valid(header) == PARENT


def test_a_new_one_is_valid_and_never_the_same() -> None:
    made = {trace.new() for _ in range(100)}

    assert len(made) == 100
    assert all(trace.valid(each) == each for each in made)


@pytest.mark.parametrize("executor", ["fresh", "warm"])
def test_a_trace_goes_from_the_request_into_record_plugin_and_log(
    start_server: StartServer, tmp_path: Path, executor: str
) -> None:
    plugin = tmp_path / "tells.py"
    plugin.write_text(
        f"import os, sys; sys.path.insert(0, {str(PLUGINS)!r})\n"
        "print('traceparent is', os.environ.get('TRACEPARENT'), flush=True)\n"
        "from common import segment; segment()\n"
    )
    server = start_server(plugin, executor=executor, log_format="json")
    answer = server.infer(headers={"traceparent": PARENT})
    job_id = answer.headers["X-Pfms-Job"]
    folder = server.workspace / "jobs" / job_id

    assert answer.status_code == 200
    assert answer.headers["traceparent"] == PARENT
    assert json.loads((folder / "job.json").read_text())["traceparent"] == PARENT
    assert server.job(job_id)["traceparent"] == PARENT
    assert f"traceparent is {PARENT}" in (folder / "plugin.log").read_text()
    assert "TRACEPARENT" not in (folder / "command.sh").read_text()
    eventually(lambda: "POST" in server.log.read_text())
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert next(line for line in lines if "POST" in line["message"])["trace_id"] == TRACE_ID


def test_what_two_jobs_log_is_told_apart(start_server: StartServer) -> None:
    server = start_server("exit3.py", log_format="json")
    other = PARENT.replace("4bf9", "5bf9")
    jobs = [server.submit(headers={"traceparent": each}) for each in (PARENT, other)]
    for job_id, each in zip(jobs, (PARENT, other), strict=True):
        assert server.ended(job_id)["traceparent"] == each


def test_without_a_valid_header_each_request_gets_a_trace_of_its_own(server: Server) -> None:
    headers = [{}, {"traceparent": "nonsense"}, {"traceparent": f"{PARENT}-more"}]
    answers = [server.http.get("/about", headers=each).headers["traceparent"] for each in headers]

    assert len({*answers, PARENT}) == 4
    assert all(trace.valid(each) == each for each in answers)


def test_a_refusal_answers_with_the_trace_as_well(server: Server) -> None:
    answer = server.infer(b"no volume", headers={"traceparent": PARENT})

    assert (answer.status_code, answer.headers["traceparent"]) == (422, PARENT)


def test_a_rerun_belongs_to_the_request_that_asked_for_it(server: Server) -> None:
    job_id = server.ended(server.submit())["id"]
    answer = server.http.post(f"/jobs/{job_id}/rerun", headers={"traceparent": PARENT})

    assert answer.json()["traceparent"] == PARENT
    server.ended(answer.json()["id"])
