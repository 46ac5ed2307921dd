"""When a real disk runs full, wherever that happens, the error is right and nothing is lost."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfms.plugin.types import PluginExit
from pfms.plugin.verdict import cause_of
from pfms.processes.marks import WORKSPACE_MARK, find_marked
from pfms.storage.workspace import Workspace
from tests.conftest import ROOT, Server, StartServer, eventually, nifti_bytes, seed_model
from tests.refused import MODELPTH, check, files_of

MIB = 1 << 20
PAGE = 4096
DISK_FULL = (507, "disk-full")


class Disk:
    """A separate file system, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def free(self) -> int:
        room = os.statvfs(self.folder)
        return room.f_bavail * room.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Leave this many bytes free, rounded to pages."""
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(PAGE))
        os.truncate(self._ballast, self._ballast.stat().st_size - leave)

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    said = subprocess.run(mount, capture_output=True, text=True, check=False)
    if said.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {said.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


Begin = Callable[..., Server]


@pytest.fixture
def begin(disk: Disk, start_server: StartServer) -> Begin:
    """Start a server on the small disk; its own log is there as well."""

    def start(plugin: str = "as_the_model_says.py", **settings: Any) -> Server:
        workspace = disk.folder / "workspace"
        for name in ("demo", "writes_until_full", "leaves_no_room"):
            if not (workspace / "models" / name).exists():
                seed_model(workspace, name, b"ok" if name == "demo" else name.encode())
        return start_server(plugin, workspace=workspace, **settings)

    return start


def noise(megabytes: int) -> bytes:
    """A volume that hardly compresses."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, megabytes * MIB // 2, dtype=np.int16)
    return nifti_bytes((128, 128, megabytes * 32), gzipped=False)[:352] + voxels.tobytes()


def works(server: Server) -> None:
    """Check that it runs a job as if nothing had happened."""
    answer = server.infer()
    assert answer.status_code == 200, answer.text


# --- uploading -------------------------------------------------------------------------------


@pytest.mark.parametrize("megabytes", [40, 16], ids=["upload", "packed copy"])
def test_an_upload_that_does_not_fit_is_507_and_its_space_is_freed(
    begin: Begin, disk: Disk, megabytes: int
) -> None:
    server = begin()
    before, free = files_of(server), disk.free()
    check(server.infer(noise(megabytes)), *DISK_FULL, server)
    if megabytes == 40:
        answer = server.http.post(
            MODELPTH, params={"modelID": "demo"}, files={"file": bytes(40 * MIB)}
        )
        check(answer, *DISK_FULL, server)
    assert files_of(server) == before
    assert disk.free() >= free - PAGE  # the server's log
    works(server)


def check_wherever_the_room_ends(begin: Begin, disk: Disk, step: int) -> None:
    server = begin("empty.py")
    answers = set()
    for pages in range(0, 24, step):
        before = files_of(server)
        disk.fill(leave=pages * PAGE)
        answer = server.infer(headers={"Prefer": "respond-async"})
        disk.make_room()
        answers.add(answer.status_code)
        if answer.status_code == 507:
            check(answer, *DISK_FULL, server)
            assert files_of(server) == before
            continue
        assert answer.status_code == 202, answer.text
        job = server.ended(answer.json()["id"])
        assert job["state"] == "succeeded" or job["error"]["code"] == "disk-full"
    assert answers == {202, 507}
    works(server)
    assert "Traceback" not in server.log.read_text()


def test_wherever_the_disk_runs_full_a_request_is_a_job_or_nothing(
    begin: Begin, disk: Disk
) -> None:
    check_wherever_the_room_ends(begin, disk, 3)


@pytest.mark.every
def test_at_whichever_page_the_disk_runs_full_a_request_is_a_job_or_nothing(
    begin: Begin, disk: Disk
) -> None:
    check_wherever_the_room_ends(begin, disk, 1)


@pytest.mark.every
def test_a_model_whose_checked_copy_does_not_fit_is_507(begin: Begin, disk: Disk) -> None:
    server = begin()
    before = files_of(server)
    weights = (ROOT / "examples" / "demo_model.pth").read_bytes()
    answer = server.http.post(MODELPTH, params={"modelID": "demo"}, files={"file": weights})
    check(answer, *DISK_FULL, server)
    assert files_of(server) == before
    works(server)


# --- running ---------------------------------------------------------------------------------


def test_a_run_that_fills_the_disk_fails_and_its_space_is_freed(begin: Begin, disk: Disk) -> None:
    server = begin()
    works(server)
    for model in ("writes_until_full", "leaves_no_room"):
        free = disk.free()
        answer = server.infer(model=model)
        check(answer, *DISK_FULL, server)
        job = server.job(answer.headers["x-pfms-job"])
        assert (job["state"], job["error"]["code"]) == ("failed", "disk-full")
        folder = server.workspace / "jobs" / job["id"]
        assert not (folder / "output").exists()
        assert not (folder / "result").exists()
        assert disk.free() >= free - 64 * PAGE  # the job, and the jobs table has grown
        works(server)


@pytest.mark.parametrize(
    ("end", "log", "error"),
    [
        (PluginExit(1, None, 1.0), "", "disk-full"),
        (PluginExit(0, None, 1.0), "Loading dataset", "disk-full"),
        (PluginExit(None, signal.SIGBUS, 1.0), "", "disk-full"),
        (PluginExit(None, signal.SIGTERM, 1.0, "time-limit"), "", "timed-out"),
        (PluginExit(1, None, 1.0), "RuntimeError: CUDA out of memory.", "gpu-out-of-memory"),
    ],
)
def test_a_full_disk_is_the_cause_even_if_the_log_cannot_say_so(
    end: PluginExit, log: str, error: str
) -> None:
    assert cause_of(end, log, onehot_written=False, disk_full=True).error == error


def test_an_end_that_cannot_be_recorded_is_recorded_when_there_is_room(
    begin: Begin, disk: Disk
) -> None:
    server = begin("hangs.py", job_timeout_seconds=2)
    job_id = server.submit()
    eventually(lambda: "hanging" in server.http.get(f"/jobs/{job_id}/log").text)
    disk.fill()
    eventually(lambda: not find_marked(WORKSPACE_MARK, Workspace(server.workspace).mark))
    for path in ("/jobs", f"/jobs/{job_id}", "/spleenseg/modelpth", "/about"):
        assert server.http.get(path).status_code == 200
    assert server.job(job_id)["state"] == "running"
    disk.make_room()
    job = server.ended(job_id)
    assert (job["state"], job["error"]["code"]) == ("failed", "timed-out")


def test_a_run_can_be_cancelled_while_the_disk_is_full(begin: Begin, disk: Disk) -> None:
    server = begin("hangs.py")
    running, waiting = server.submit(), server.submit()
    eventually(lambda: "hanging" in server.http.get(f"/jobs/{running}/log").text)
    disk.fill()
    for job_id in (running, waiting):
        answer = server.http.post(f"/jobs/{job_id}/cancel", timeout=20)
        assert answer.status_code in (202, 507), answer.text
    eventually(lambda: not find_marked(WORKSPACE_MARK, Workspace(server.workspace).mark))
    disk.make_room()
    for job_id in (running, waiting):
        assert server.ended(job_id)["state"] == "cancelled"


# --- stop and start --------------------------------------------------------------------------


def test_a_server_on_a_full_disk_stops_and_its_job_runs_after_the_restart(
    begin: Begin, disk: Disk
) -> None:
    server = begin("hangs.py", grace_seconds=1)
    job_id = server.submit()
    eventually(lambda: "hanging" in server.http.get(f"/jobs/{job_id}/log").text)
    disk.fill()
    assert server.stop(signal.SIGTERM) == 0
    disk.make_room()
    assert begin().ended(job_id)["state"] == "succeeded"


def test_a_server_that_finds_the_disk_full_says_so_and_loses_nothing(
    begin: Begin, disk: Disk
) -> None:
    server = begin()
    done = server.ended(server.submit())
    events = server.http.get(f"/jobs/{done['id']}/events").text
    server.stop()
    disk.fill()
    line = [sys.executable, "-m", "pfms", "serve", "--port", "0"]
    environment = os.environ | {"PFMS_WORKSPACE": str(server.workspace), "PFMS_DEVICES": "cpu"}
    run = subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout) == (2, ""), run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    assert "Make room" in run.stderr
    disk.make_room()
    server = begin()
    assert server.job(done["id"]) == done
    assert server.http.get(f"/jobs/{done['id']}/events").text == events


# --- other writes ----------------------------------------------------------------------------


def test_other_calls_on_a_full_disk_are_507_or_free_space(begin: Begin, disk: Disk) -> None:
    server = begin()
    first, second = (server.ended(server.submit(noise(1)))["id"] for _ in range(2))
    before = files_of(server)
    disk.fill()
    for method, path in (
        ("GET", f"/jobs/{first}/bundle?voxels=true"),
        ("PUT", "/spleenseg/inference/device/cpu"),
        ("POST", f"/jobs/{first}/rerun"),
    ):
        check(server.http.request(method, path), *DISK_FULL, server)
    assert files_of(server) == before
    for path in ("result", "volume", "preview.png", "log", "events", ""):
        assert server.http.get(f"/jobs/{first}/{path}").status_code == 200, path
    answer = server.http.delete(f"/jobs/{first}", params={"purge": "voxels"})
    assert answer.status_code == 204, answer.text
    assert server.http.delete(f"/jobs/{second}").status_code == 204
    disk.make_room()
    assert json.loads((server.workspace / "jobs" / first / "job.json").read_text())["purged_at"]
    works(server)
