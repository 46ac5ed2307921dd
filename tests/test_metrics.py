"""Every metric is explained, and moves when what it counts happens on a real server."""

import platform
import re
import shutil
from functools import partial
from pathlib import Path

import psutil
import pytest
from prometheus_client.openmetrics import parser

from pfms import __version__
from pfms.metrics import OTHER, RUN_STAGES, Metrics, known
from tests.conftest import ROOT, Server, StartServer, eventually, nifti_bytes, start
from tests.scrape import names_in, scrape, value
from tests.wire import Wire

DOCUMENTED = set(
    re.findall(r"^\| `(pfms_\w+)` \|", (ROOT / "docs" / "observing.md").read_text(), re.MULTILINE)
)
CODE = r"[a-z]+(-[a-z]+)*"


def test_the_documentation_names_every_metric_and_no_other(server: Server) -> None:
    assert names_in(server) == DOCUMENTED


def test_every_metric_is_moved_by_a_test_of_this_file() -> None:
    tests = Path(__file__).read_text().partition("# --- what moves them")[2]

    assert {name for name in DOCUMENTED if name not in tests} == set()


def test_names_end_with_their_base_unit() -> None:
    units = "(seconds|bytes_total|bytes|total|info)"
    plain = {"ready", "jobs", "queue_limit", "slots", "slots_usable", "slots_busy"}  # of things

    for name in DOCUMENTED - {f"pfms_{each}" for each in plain}:
        assert re.fullmatch(rf"pfms_\w+_{units}", name), name


# --- what moves them ---------------------------------------------------------------------------


def test_a_job_that_succeeds_is_counted(start_server: StartServer) -> None:
    server = start_server(queue_limit=7, jobs_per_device=2, min_free_bytes=4096)
    volume = nifti_bytes()
    server.ended(server.submit(volume))

    assert (
        value(server, "pfms_build_info", version=__version__, python=platform.python_version()) == 1
    )
    assert value(server, "pfms_ready") == 1
    assert value(server, "pfms_jobs_accepted_total") == 1
    assert value(server, "pfms_jobs_ended_total", state="succeeded", cause="none") == 1
    assert value(server, "pfms_queue_limit") == 7
    assert value(server, "pfms_queue_wait_seconds_count") == 1
    assert value(server, "pfms_slots") == 2
    assert value(server, "pfms_slots_usable") == 2
    assert value(server, "pfms_upload_bytes_total", kind="volume") == len(volume)
    assert value(server, "pfms_disk_min_free_bytes") == 4096


def test_a_job_that_fails_or_is_cancelled_is_counted_with_its_cause(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("exit3.py")
    assert server.infer().status_code == 500
    assert value(server, "pfms_jobs_ended_total", state="failed", cause="plugin-failed") == 1
    assert value(server, "pfms_refusals_total", code="plugin-failed") == 1
    hanging = start_server("hangs.py", workspace=tmp_path / "hanging")
    job_id = hanging.submit()
    hanging.http.post(f"/jobs/{job_id}/cancel")
    hanging.ended(job_id)
    assert value(hanging, "pfms_jobs_ended_total", state="cancelled", cause="cancelled") == 1


def test_a_job_that_a_start_gives_up_is_counted(start_server: StartServer) -> None:
    server = start_server("hangs.py", max_attempts=1)
    job_id = server.submit()
    eventually(lambda: server.job(job_id)["state"] == "running")
    server.process.kill()
    server.stop()
    server = start_server("ok.py", max_attempts=1)

    assert value(server, "pfms_jobs_ended_total", state="failed", cause="interrupted") == 1


def test_the_memory_of_runs_is_counted(start_server: StartServer) -> None:
    server = start_server()
    job = server.ended(server.submit())

    assert value(server, "pfms_run_peak_memory_bytes_count") == 1
    assert value(server, "pfms_run_peak_memory_bytes_sum") == job["peak_memory_bytes"]


def test_the_memory_that_is_promised_is_as_it_is_at_the_scrape(start_server: StartServer) -> None:
    server = start_server("hangs.py", memory_limit="1TiB")
    job_id = server.submit()
    eventually(lambda: server.job(job_id)["state"] == "running")

    assert value(server, "pfms_memory_limit_bytes") == 2**40
    estimate = server.job(job_id)["estimated_memory_bytes"]
    assert value(server, "pfms_memory_promised_bytes") == estimate
    server.http.post(f"/jobs/{job_id}/cancel")
    eventually(lambda: value(server, "pfms_memory_promised_bytes") == 0)


def test_queue_and_slots_are_as_they_are_at_the_scrape(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    jobs = [server.submit() for _ in range(3)]

    assert value(server, "pfms_jobs", state="running") == 1
    assert value(server, "pfms_jobs", state="queued") == 2
    assert value(server, "pfms_slots_busy") == 1
    for job_id in reversed(jobs):
        server.http.post(f"/jobs/{job_id}/cancel")
        server.ended(job_id)
    eventually(lambda: value(server, "pfms_slots_busy") == 0)
    assert value(server, "pfms_jobs", state="queued") == 0
    assert value(server, "pfms_queue_wait_seconds_count") == 1


def test_each_stage_of_a_run_is_timed(start_server: StartServer) -> None:
    server = start_server("staged.py")
    job_id = server.submit()
    folder = server.workspace / "jobs" / job_id
    for stage, flag in (("loading", "infer"), ("inferring", "save"), ("resampling", "end")):
        eventually(partial(_is_in, server, job_id, stage))
        assert value(server, "pfms_stage_seconds_count", stage=stage) == 0
        (folder / flag).touch()
    server.ended(job_id)

    for stage in RUN_STAGES:
        eventually(partial(_has_timed, server, stage))


def _is_in(server: Server, job_id: str, stage: str) -> bool:
    progress: dict[str, object] = server.job(job_id)["progress"]
    return progress["stage"] == stage


def _has_timed(server: Server, stage: str) -> bool:
    return value(server, "pfms_stage_seconds_count", stage=stage) == 1


def test_what_is_refused_is_counted_by_its_code(start_server: StartServer) -> None:
    server = start_server(max_upload_bytes=200_000)
    assert server.infer(b"no volume").status_code == 422
    files = {"file": b"no weights"}
    model = server.http.post("/spleenseg/modelpth", params={"modelID": "x"}, files=files)
    assert model.status_code == 422
    assert server.infer(bytes(300_000)).status_code == 413
    assert server.http.get("/nothing").status_code == 404
    wrong = server.http.get(f"{server.url}/health/live", headers={"Host": "evil.test"})
    assert wrong.status_code == 421
    with Wire(server.url) as wire:
        wire.send(b"no HTTP\r\n\r\n")
        assert wire.answer().status == 400

    for code in (
        "not-a-nifti",
        "not-a-model",
        "too-large",
        "not-found",
        "wrong-host",
        "invalid-parameter",
    ):
        assert value(server, "pfms_refusals_total", code=code) == 1, code
    failures = "pfms_admission_failures_total"
    assert value(server, failures, kind="volume", code="not-a-nifti") == 1
    assert value(server, failures, kind="model", code="not-a-model") == 1
    assert value(server, "pfms_upload_bytes_total", kind="model") == len(files["file"])
    assert value(server, "pfms_upload_bytes_total", kind="volume") >= 200_000
    assert value(server, "pfms_jobs_accepted_total") == 0


def test_each_restart_of_the_warm_parent_is_counted(start_server: StartServer) -> None:
    server = start_server("ok.py", executor="warm")
    eventually(lambda: value(server, "pfms_ready") == 1)
    assert value(server, "pfms_warm_parent_restarts_total", reason="died") == 0
    (parent,) = psutil.Process(server.process.pid).children()
    parent.kill()

    eventually(lambda: value(server, "pfms_warm_parent_restarts_total", reason="died") == 1)
    eventually(lambda: value(server, "pfms_ready") == 1)


def test_a_slot_whose_device_is_gone_is_not_usable(tmp_path: Path) -> None:
    gpus = tmp_path / "gpus"
    gpus.write_text("2")
    program = tmp_path / "with_gpus.py"
    program.write_text(
        "from pathlib import Path\nfrom pfms.cli import main\n"
        "from pfms.executors import devices\n"
        "devices.torch_cuda_version = lambda: '12.1'\n"
        f"devices.driver_gpus = lambda: (int(Path({str(gpus)!r}).read_text()), 12)\n"
        "main()\n"
    )
    server = start(tmp_path / "workspace", program=(str(program),), devices="auto")
    try:
        assert value(server, "pfms_slots_usable") == 2
        gpus.write_text("1")
        assert value(server, "pfms_slots_usable") == 1
        assert value(server, "pfms_slots") == 2
    finally:
        server.stop()


def test_a_workspace_that_is_gone_is_not_ready_and_has_no_disk(start_server: StartServer) -> None:
    server = start_server()
    free = shutil.disk_usage(server.workspace).free
    assert value(server, "pfms_disk_free_bytes") == pytest.approx(free, rel=0.2)
    server.log.rename(server.workspace.parent / "server.log")
    shutil.rmtree(server.workspace)

    assert value(server, "pfms_ready") == 0
    assert value(server, "pfms_disk_free_bytes") != value(server, "pfms_disk_free_bytes")  # NaN


def test_the_lag_of_the_event_loop_is_measured_all_the_time(server: Server) -> None:
    before = value(server, "pfms_event_loop_lag_seconds_count")

    eventually(lambda: value(server, "pfms_event_loop_lag_seconds_count") > before + 1)


# --- labels and access -------------------------------------------------------------------------


def test_no_label_names_a_job_a_model_or_a_file(start_server: StartServer) -> None:
    server = start_server("exit3.py")
    job_id = server.submit()
    server.ended(job_id)
    server.infer(b"no volume", model="a-model")
    text = server.http.get(f"{server.url}/metrics").text

    assert job_id not in text
    assert "a-model" not in text
    for (name, labels), _ in scrape(server).items():
        for label, content in labels:
            if label not in ("le", "version", "python"):
                assert re.fullmatch(CODE, content), (name, label, content)


def test_a_code_that_no_error_has_is_counted_as_other() -> None:
    metrics = Metrics()
    for n in range(100):
        metrics.refused(f"code-{n}")

    assert known("disk-full") == "disk-full"
    assert metrics.registry.get_sample_value("pfms_refusals_total", {"code": OTHER}) == 100


def test_two_apps_count_for_themselves() -> None:
    one, other = Metrics(), Metrics()
    one.accepted()

    assert other.registry.get_sample_value("pfms_jobs_accepted_total") == 0


def test_openmetrics_is_sent_to_whoever_asks_for_it(server: Server) -> None:
    kind = "application/openmetrics-text; version=1.0.0"
    answer = server.http.get(f"{server.url}/metrics", headers={"Accept": kind})

    assert answer.headers["content-type"].startswith(kind)
    assert list(parser.text_string_to_metric_families(answer.text))  # type: ignore[no-untyped-call]


def test_metrics_can_be_switched_off(start_server: StartServer) -> None:
    server = start_server(metrics="off")

    answer = server.http.get(f"{server.url}/metrics")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
