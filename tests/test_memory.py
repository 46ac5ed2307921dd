"""What runs need and may use: estimated, refused, waited for, and kept across restarts."""

import itertools
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from pfms.executors.memory import for_runs, memory_of_runs
from pfms.plugin import PLUGIN
from pfms.settings import load_settings
from pfms.volumes.memory import RunMemory
from tests.conftest import StartServer, eventually, nifti_bytes

GIB = 2**30
CLINICAL = (512, 512, 100), (0.8, 0.8, 3.0)


def needed(
    shape: tuple[int, int, int] = CLINICAL[0],
    spacing: tuple[float, float, float] = CLINICAL[1],
    dtype: str = "int16",
    *,
    scaled: bool = False,
    adapted: bool = True,
) -> int:
    return PLUGIN.memory_needed(shape, spacing, dtype, scaled=scaled, adapted=adapted)


# --- the estimate ------------------------------------------------------------------------------


def test_a_larger_volume_never_needs_less() -> None:
    slices = [needed((512, 512, n)) for n in (2, 50, 100, 400, 800, 2000)]
    assert slices == sorted(slices)
    assert slices[-1] > slices[0]
    spacings = [needed(spacing=(0.8, 0.8, mm)) for mm in (0.5, 3.0, 100.0)]
    assert spacings == sorted(spacings)


def test_a_wider_type_scaling_and_missing_adaptations_never_need_less() -> None:
    shape = (512, 512, 800)
    types = [needed(shape, dtype=name) for name in ("uint8", "int16", "float32", "float64")]
    assert types == sorted(types)
    assert needed(shape, scaled=True) >= needed(shape)
    for size in (2, 100, 400, 800):
        assert needed((512, 512, size), adapted=False) >= needed((512, 512, size))


def test_how_a_volume_lies_does_not_matter() -> None:
    sizes = {
        needed((x[0], y[0], z[0]), (x[1], y[1], z[1]))
        for x, y, z in itertools.permutations(((512, 0.8), (512, 0.8), (400, 1.0)))
    }
    assert max(sizes) < 1.1 * min(sizes)


# --- what the machine has ----------------------------------------------------------------------

KEPT = 512 << 20


def groups(folder: Path, own: str, limits: dict[str, str | int]) -> tuple[int, int]:
    """What runs may use where these are the files of the control groups."""
    for name, limit in limits.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    (folder / "own").write_text(own)
    return for_runs(folder, folder / "own")


def test_without_a_limit_runs_may_use_what_the_machine_has(tmp_path: Path) -> None:
    together, alone = for_runs(tmp_path, tmp_path / "there-is-none")
    assert together == psutil.virtual_memory().total - KEPT
    assert alone == together + psutil.swap_memory().total


@pytest.mark.parametrize("name", ["a/b/memory.max", "a/memory.max", "memory.max"])
def test_a_control_group_and_those_above_it_may_have_a_limit(tmp_path: Path, name: str) -> None:
    limits: dict[str, str | int] = {"a/b/memory.max": "max", "a/memory.max": "max"}
    found = groups(tmp_path, "0::/a/b\n", {**limits, name: 3 * GIB})
    assert found == (3 * GIB - KEPT, 3 * GIB - KEPT), "without the machine's swap"


@pytest.mark.parametrize("name", ["docker/abc", "."])
def test_the_limit_of_a_control_group_of_version_1_is_known_too(tmp_path: Path, name: str) -> None:
    own = "5:cpu:/other\n4:memory:/docker/abc\n0::/\n"  # a container may not see this path
    limits: dict[str, str | int] = {"memory/memory.limit_in_bytes": 2**63 - 4096}
    limits[f"memory/{name}/memory.limit_in_bytes"] = 3 * GIB
    assert groups(tmp_path, own, limits)[0] == 3 * GIB - KEPT


def limits(**settings: Any) -> RunMemory:
    return memory_of_runs(load_settings(**settings), "warm")


def test_a_setting_stands_for_what_the_machine_has() -> None:
    assert limits(memory_limit="3GiB") == RunMemory(3 * GIB, 3 * GIB, "PFMS_MEMORY_LIMIT", True)
    assert limits(memory_limit=0).together == 0
    assert limits().together == for_runs()[0]


def test_a_run_may_not_have_more_than_each_of_its_processes() -> None:
    for together in (0, "9GiB"):
        found = limits(memory_limit=together, max_run_memory="2GiB")
        assert (found.alone, found.setting) == (2 * GIB, "PFMS_MAX_RUN_MEMORY")
    found = limits(memory_limit="1GiB", max_run_memory="2GiB")
    assert (found.alone, found.setting) == (GIB, "PFMS_MEMORY_LIMIT")


# --- over HTTP ---------------------------------------------------------------------------------

NEED = needed((24, 20, 24), (3.0, 3.0, 3.0))  # of the volume that `nifti_bytes` makes


@pytest.mark.parametrize("setting", ["memory_limit", "max_run_memory"])
def test_a_volume_that_cannot_fit_is_refused_with_a_remedy_and_makes_no_job(
    start_server: StartServer, setting: str
) -> None:
    server = start_server(**{setting: NEED - 1})

    answer = server.infer()

    assert (answer.status_code, answer.json()["code"]) == (422, "no-memory"), answer.text
    assert f"PFMS_{setting.upper()}" in answer.json()["remedy"]
    assert f"{NEED / GIB:.2f} GiB" in answer.json()["detail"]
    assert "x-pfms-job" not in answer.headers
    assert server.job_folders() == []
    assert server.uploads() == []


def test_an_estimate_of_what_the_limit_is_fits_and_is_on_record(start_server: StartServer) -> None:
    server = start_server(memory_limit=NEED)

    job = server.ended(server.submit())

    assert job["state"] == "succeeded", job["error"]
    assert job["estimated_memory_bytes"] == NEED
    assert job["volume"]["scaled"] is False
    record = json.loads((server.workspace / job["folder"] / "job.json").read_bytes())
    assert record["estimated_memory_bytes"] == NEED


def test_two_slots_do_not_start_what_does_not_fit_together(start_server: StartServer) -> None:
    server = start_server("alone.py", jobs_per_device=2, memory_limit=2 * NEED - 1)

    jobs = [server.ended(job_id) for job_id in [server.submit() for _ in range(3)]]

    assert [job["error"] for job in jobs] == [None] * 3


def test_a_job_waits_for_memory_and_starts_when_there_is_room(start_server: StartServer) -> None:
    server = start_server("hangs.py", jobs_per_device=2, memory_limit=2 * NEED - 1)
    first, second = server.submit(), server.submit()
    eventually(lambda: server.job(first)["state"] == "running")

    waiting = server.job(second)
    assert (waiting["state"], waiting["place"]) == ("queued", 0)
    assert waiting["estimated_start"] > waiting["created_at"]

    server.http.post(f"/jobs/{first}/cancel")
    eventually(lambda: server.job(second)["state"] == "running")
    server.http.post(f"/jobs/{second}/cancel")


def test_without_a_limit_both_slots_are_used(start_server: StartServer) -> None:
    server = start_server("hangs.py", jobs_per_device=2, memory_limit=0)
    jobs = [server.submit(), server.submit()]

    eventually(lambda: [server.job(each)["state"] for each in jobs] == ["running"] * 2)
    for each in jobs:
        server.http.post(f"/jobs/{each}/cancel")


def test_a_rerun_is_refused_like_a_new_volume(start_server: StartServer) -> None:
    server = start_server()
    job_id = server.submit()
    server.ended(job_id)
    server.stop()
    server = start_server(memory_limit=NEED - 1)

    answer = server.http.post(f"/jobs/{job_id}/rerun")

    assert (answer.status_code, answer.json()["code"]) == (422, "no-memory"), answer.text
    assert len(server.job_folders()) == 1


@pytest.mark.parametrize("how", ["as it is", "of an older pfms"])
def test_after_a_restart_with_less_memory_a_job_that_cannot_fit_fails_with_the_cause(
    start_server: StartServer, how: str
) -> None:
    server = start_server("hangs.py")
    jobs = [server.submit(), server.submit()]
    eventually(lambda: server.job(jobs[0])["state"] == "running")
    server.process.kill()
    server.stop()
    if how == "of an older pfms":
        for job_id in jobs:
            make_older(server.workspace / "jobs" / job_id / "job.json")

    server = start_server("ok.py", memory_limit=NEED - 1)

    for job_id in jobs:
        job = server.job(job_id)
        assert (job["state"], job["error"]["code"]) == ("failed", "no-memory")
        assert "PFMS_MEMORY_LIMIT" in job["error"]["remedy"]
        assert job["estimated_memory_bytes"] >= NEED
    assert server.infer(nifti_bytes()).json()["code"] == "no-memory"


def make_older(record: Path) -> None:
    """Take away what an older pfms did not record."""
    content = json.loads(record.read_bytes())
    del content["estimated_memory_bytes"], content["peak_memory_bytes"], content["volume"]["scaled"]
    content["revision"] += 1
    record.write_text(json.dumps(content))


def test_after_a_restart_a_job_of_an_older_pfms_that_fits_runs(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    job_id = server.submit()
    server.process.kill()
    server.stop()
    make_older(server.workspace / "jobs" / job_id / "job.json")

    server = start_server("ok.py", memory_limit=2 * NEED)

    job = server.ended(job_id)
    assert job["state"] == "succeeded"
    assert job["estimated_memory_bytes"] >= NEED


def test_a_run_that_takes_more_than_it_may_have_names_estimate_and_peak(
    start_server: StartServer,
) -> None:
    server = start_server("escaping/takes_memory.py", max_run_memory=NEED + (64 << 20))

    job = server.ended(server.submit())

    assert job["error"]["code"] == "out-of-memory"
    assert f"{NEED / GIB:.2f} GiB had been estimated" in job["error"]["remedy"]
    assert f"It held {job['peak_memory_bytes'] / GIB:.2f} GiB" in job["error"]["remedy"]
