"""What a fault of the plugin becomes over HTTP: its code, its record, and no process left."""

import json
from collections.abc import Iterator

import pytest

from pfms.processes.marks import JOB_MARK, find_marked
from tests.conftest import Server, StartServer, image_of, nifti_bytes, seed_model, spleen_of, start

FAULTS = {
    "exit3": (500, "plugin-failed", "exit code 3"),
    "raises": (500, "plugin-failed", "cannot read 'input/imagesTs/input.nii.gz'"),
    "writes_nothing": (500, "bad-result", "wrote no segmentation"),
    "leaves_children": (500, "bad-result", "wrote no segmentation"),
    "wrong_shape": (500, "bad-result", "24 x 20 x 23 x 2"),
    "wrong_affine": (500, "bad-result", "affine"),
    "wrong_values": (500, "bad-result", "other than 0 and 1"),
    "not_gzip": (500, "bad-result", "input_seg.nii.gz"),
    "out_of_memory": (500, "out-of-memory", "SIGKILL"),
    "fills_disk": (507, "disk-full", "No space left"),
    "stopped_from_outside": (503, "interrupted", "stopped by something outside"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose models are named for the fault that they make the plugin have."""
    workspace = tmp_path_factory.mktemp("faulty") / "workspace"
    for name in (*FAULTS, "short_stack", "floods_stderr"):
        seed_model(workspace, name, name.encode())
    seed_model(workspace)
    one = start(workspace, "as_the_model_says.py", grace_seconds=0.5)
    yield one
    one.stop()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_reported_with_its_cause_and_recorded(faulty: Server, name: str) -> None:
    status, code, words = FAULTS[name]

    answer = faulty.infer(model=name)

    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem, job_id = answer.json(), answer.headers["x-pfms-job"]
    assert words in problem["detail"]
    assert problem["job"] == job_id
    assert problem["remedy"]
    assert ("retry-after" in answer.headers) == (status == 503)
    job = faulty.job(job_id)
    assert (job["state"], job["chris_status"]) == ("failed", "finishedWithError")
    assert job["error"] == {key: problem[key] for key in ("code", "title", "detail", "remedy")}
    assert job["segmentation"] is None
    assert job["peak_memory_bytes"] > 0
    assert job["attempts"] == (2 if code == "interrupted" else 1)
    folder = faulty.workspace / "jobs" / job_id
    record = json.loads((folder / "job.json").read_bytes())
    assert record["error"] == job["error"]
    assert not (folder / "result" / "segmentation.nii.gz").exists()
    assert faulty.http.get(f"/jobs/{job_id}/result").json()["code"] == "job-failed"
    for text in (answer.text, str(answer.headers)):
        assert str(faulty.workspace) not in text
        assert "/tests/" not in text
    assert find_marked(JOB_MARK, job_id) == []
    assert faulty.uploads() == []


@pytest.mark.parametrize("name", ["exit3", "fills_disk"])
def test_the_log_of_a_failed_run_can_be_read(faulty: Server, name: str) -> None:
    job_id = faulty.infer(model=name).headers["x-pfms-job"]

    log = faulty.http.get(f"/jobs/{job_id}/log").text

    assert {"exit3": "no spleen today", "fills_disk": "No space left"}[name] in log


def test_a_short_stack_succeeds_with_a_warning_in_answer_and_record(faulty: Server) -> None:
    volume = nifti_bytes((24, 20, 16))

    answer = faulty.infer(volume, "short_stack")

    assert answer.status_code == 200, answer.text
    assert (image_of(answer.content).get_fdata() == spleen_of(volume)).all()
    assert "fewer than 21 slices" in answer.headers["x-pfms-warning"]
    job = faulty.job(answer.headers["x-pfms-job"])
    assert job["warnings"] == [answer.headers["x-pfms-warning"]]
    assert job["state"] == "succeeded"


def test_a_flood_on_stderr_is_logged_up_to_the_bound_and_does_no_harm(faulty: Server) -> None:
    answer = faulty.infer(model="floods_stderr")

    assert answer.status_code == 200, answer.text
    job_id = answer.headers["x-pfms-job"]
    assert 4 << 20 < len(faulty.http.get(f"/jobs/{job_id}/log").content) <= 16 << 20


def test_after_any_fault_the_next_run_succeeds(faulty: Server) -> None:
    assert faulty.infer(model="exit3").status_code == 500
    assert faulty.infer().status_code == 200
    assert b"Traceback" not in faulty.log.read_bytes()


def test_a_run_over_its_time_limit_is_ended_and_timed_out(start_server: StartServer) -> None:
    server = start_server("ignores_term.py", job_timeout_seconds=1, grace_seconds=0.2)

    answer = server.infer()

    assert (answer.status_code, answer.json()["code"]) == (504, "timed-out"), answer.text
    job = server.job(answer.headers["x-pfms-job"])
    assert job["error"]["code"] == "timed-out"
    assert job["seconds"] >= 1
    assert find_marked(JOB_MARK, job["id"]) == []
