"""Plugins that misbehave on purpose: each run ends with its cause, and nothing else is touched."""

import io
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfms.plugin import PLUGIN
from pfms.processes.marks import JOB_MARK, find_marked
from pfms.storage.removal import discard
from tests.conftest import (
    PLUGINS,
    Server,
    StartServer,
    eventually,
    image_of,
    nifti_bytes,
    seed_model,
    spleen_of,
    start,
)

SECRET = b"a secret of someone else\n" * 100
AS_ROOT = os.geteuid() == 0

FAILED = "plugin-failed"
BAD = "bad-result"
FAULTS = {
    "log_is_a_link": (FAILED, "replaced its log: plugin.log is a link"),
    "log_is_a_fifo": (FAILED, "replaced its log: plugin.log is a FIFO"),
    "log_is_a_folder": (FAILED, "replaced its log: plugin.log is a folder"),
    "log_is_a_socket": (FAILED, "replaced its log: plugin.log is a socket"),
    "log_is_a_device": (FAILED, "replaced its log: plugin.log is a device"),
    "log_is_a_hard_link": (FAILED, "replaced its log: plugin.log is a hard link"),
    "result_is_a_link_to_another_job": (BAD, "input_seg.nii.gz is a link"),
    "result_is_a_link_outside": (BAD, "input_seg.nii.gz is a link"),
    "result_is_a_fifo": (BAD, "input_seg.nii.gz is a FIFO"),
    "result_is_a_folder": (BAD, "input_seg.nii.gz is a folder"),
    "result_is_a_socket": (BAD, "input_seg.nii.gz is a socket"),
    "result_is_a_device": (BAD, "input_seg.nii.gz is a device"),
    "result_is_a_hard_link": (BAD, "input_seg.nii.gz is a hard link"),
    "output_is_a_link": (BAD, "output is a link"),
    "folder_in_output_is_a_link": (BAD, "output/inference/input is a link"),
    "result_is_sparse": (BAD, "far larger than its header says"),
    "result_is_only_a_hole": (BAD, "input_seg.nii.gz cannot be used"),
    "result_is_cut": (BAD, "input_seg.nii.gz cannot be used"),
    "record_is_a_link": (FAILED, "job.json was replaced: it is a link"),
    "record_is_a_fifo": (FAILED, "job.json was replaced: it is a FIFO"),
    "record_is_a_folder": (FAILED, "job.json was replaced: it is a folder"),
    "record_is_removed": (FAILED, "job.json was removed"),
    "command_is_replaced": (FAILED, "changed command.sh"),
    "command_is_a_link": (FAILED, "changed command.sh"),
    "input_is_a_link": (FAILED, "changed or replaced its input volume"),
    "volume_is_another": (FAILED, "changed or replaced its input volume"),
    "volume_is_changed": (FAILED, "changed or replaced its input volume"),
}
HARMLESS = [
    "labels_folder_is_a_link",
    "labels_folder_is_a_fifo",
    "labels_are_there_before",
    "parts_are_there_before",
    "record_is_garbage",
    "log_is_removed",
    "strange_names",
    "deep_tree",
    "many_files",
    "leaves_links",
]
MAKES_DEVICES = {"log_is_a_device", "result_is_a_device"}


@dataclass
class Ward:
    """A server with misbehaving plugins, and what they must leave alone."""

    server: Server
    outside: Path
    other: Path
    """The folder of a job that has ended."""

    def others(self) -> dict[str, tuple[Any, ...]]:
        """What is outside, and in the other job's folder."""
        return state_of(self.outside) | state_of(self.other)

    def folder(self, job_id: str) -> Path:
        return self.server.workspace / "jobs" / job_id

    def served(self, job_id: str) -> dict[str, bytes]:
        """All that can be had of a job over HTTP, zips unpacked."""
        paths = {
            "job": "",
            "log": "/log",
            "volume": "/volume",
            "preview": "/preview.png",
            "bundle": "/bundle",
            "all": "/bundle?voxels=true",
            **{kind: f"/result?resultant={kind}" for kind in ("labels", "onehot", "logits")},
        }
        told = {}
        for name, path in paths.items():
            answer = self.server.http.get(f"/jobs/{job_id}{path}")
            told[name] = answer.content
            if name in ("bundle", "all") and answer.status_code == 200:
                with zipfile.ZipFile(io.BytesIO(answer.content)) as bundle:
                    told |= {f"{name}: {each}": bundle.read(each) for each in bundle.namelist()}
        return told


def state_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What is there and below it: kind, rights, inode, content."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_ino, content)
    return found


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """A server whose models are named for what they make the plugin do."""
    place = tmp_path_factory.mktemp("misbehaving")
    workspace, outside = place / "workspace", place / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    seed_model(workspace)
    for plugin in (PLUGINS / "misbehaving").glob("*.py"):
        seed_model(workspace, plugin.stem, f"misbehaving/{plugin.stem}".encode())
    server = start(workspace, "as_the_model_says.py", grace_seconds=0.5)
    other = server.infer(nifti_bytes((24, 22, 24))).headers["x-pfms-job"]
    yield Ward(server, outside, workspace / "jobs" / other)
    server.stop()
    discard(workspace / "jobs")  # pytest could not remove a deep tree that a failed test left


def check_nothing_else_happened(ward: Ward, job_id: str, before: dict[str, Any]) -> None:
    """Nothing outside was served, changed or left; the next job runs, and the job can go."""
    passwd = Path("/etc/passwd").read_bytes()
    others = [(ward.other / PLUGIN.outputs["onehot"]).read_bytes()]
    others += [(ward.other / "result" / "segmentation.nii.gz").read_bytes()]
    others += [(ward.other / "input" / "imagesTs" / "input.nii.gz").read_bytes()]
    for name, content in ward.served(job_id).items():
        assert SECRET not in content, name
        assert passwd not in content, name
        assert content not in others, name
    assert ward.others() == before
    assert ward.server.infer().status_code == 200
    assert find_marked(JOB_MARK, job_id) == []
    answer = ward.server.http.delete(f"/jobs/{job_id}")
    assert answer.status_code == 204, answer.text
    assert not os.path.lexists(ward.folder(job_id))
    assert ward.server.uploads() == []
    assert ward.others() == before
    assert "Traceback" not in ward.server.log.read_text()


@pytest.mark.parametrize("name", FAULTS)
def test_the_run_ends_with_its_cause_and_nothing_else_is_touched(ward: Ward, name: str) -> None:
    if name in MAKES_DEVICES and not AS_ROOT:
        pytest.skip("only root can make a device")
    code, words = FAULTS[name]
    before = ward.others()

    answer = ward.server.infer(model=name)

    assert (answer.status_code, answer.json()["code"]) == (500, code), answer.text
    assert words in answer.json()["detail"]
    job_id = answer.headers["x-pfms-job"]
    job = ward.server.job(job_id)
    assert (job["state"], job["error"]["detail"]) == ("failed", answer.json()["detail"])
    record = ward.folder(job_id) / "job.json"
    assert not record.is_symlink()
    assert words in record.read_text()
    check_nothing_else_happened(ward, job_id, before)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_no_harm_does_not_fail_a_run(ward: Ward, name: str) -> None:
    before, volume = ward.others(), nifti_bytes(seed=1)

    answer = ward.server.infer(volume, name)

    assert answer.status_code == 200, answer.text
    assert np.array_equal(image_of(answer.content).get_fdata(), spleen_of(volume))
    job_id = answer.headers["x-pfms-job"]
    assert ward.server.job(job_id)["state"] == "succeeded"
    assert '"state": "succeeded"' in (ward.folder(job_id) / "job.json").read_text()
    check_nothing_else_happened(ward, job_id, before)


def test_a_replaced_log_says_so(ward: Ward) -> None:
    job_id = ward.server.infer(model="log_is_a_link").headers["x-pfms-job"]

    assert "the plugin replaced this log" in ward.server.http.get(f"/jobs/{job_id}/log").text


def test_a_changed_command_is_restored(ward: Ward) -> None:
    good = (ward.other / "command.sh").read_text()
    for name in ("command_is_replaced", "command_is_a_link"):
        job_id = ward.server.infer(model=name).headers["x-pfms-job"]
        command = ward.folder(job_id) / "command.sh"
        assert not command.is_symlink()
        assert command.read_text() == good
        assert command.stat().st_mode & 0o777 == 0o770


def test_a_rerun_cannot_change_the_volume_of_the_job_that_it_repeats(ward: Ward) -> None:
    first = ward.server.infer(model="volume_is_changed").headers["x-pfms-job"]
    before = state_of(ward.folder(first) / "input" / "imagesTs")

    answer = ward.server.http.post(f"/jobs/{first}/rerun")

    assert answer.status_code == 202, answer.text
    again = ward.server.ended(answer.json()["id"])
    assert "changed or replaced its input volume" in again["error"]["detail"]
    assert state_of(ward.folder(first) / "input" / "imagesTs") == before


def test_a_run_that_takes_away_all_rights_can_be_judged_and_removed(ward: Ward) -> None:
    before = ward.others()

    answer = ward.server.infer(model="closed_to_its_owner")

    job_id = answer.headers["x-pfms-job"]
    if AS_ROOT:  # for whom rights mean nothing
        assert answer.status_code == 200, answer.text
    else:
        assert answer.json()["code"] in (FAILED, BAD), answer.text
    check_nothing_else_happened(ward, job_id, before)


@pytest.mark.parametrize(
    ("name", "words"),
    [("folder_is_a_link", "replaced its job's folder"), ("folder_is_removed", "removed its job's")],
)
def test_a_run_whose_folder_is_gone_fails_on_record(ward: Ward, name: str, words: str) -> None:
    before = ward.others()
    try:
        answer = ward.server.infer(model=name)

        assert (answer.status_code, answer.json()["code"]) == (500, FAILED), answer.text
        assert words in answer.json()["detail"]
        job_id = answer.headers["x-pfms-job"]
        assert ward.server.job(job_id)["state"] == "failed"
        check_nothing_else_happened(ward, job_id, before)
    finally:
        shutil.rmtree(ward.server.workspace / "moved", ignore_errors=True)


def test_a_result_that_never_stops_growing_ends_with_the_time_limit(
    start_server: StartServer, tmp_path: Path
) -> None:
    seed_model(tmp_path / "workspace", "endless", b"misbehaving/result_never_ends")
    server = start_server("as_the_model_says.py", job_timeout_seconds=3, grace_seconds=0.2)
    server.submit()

    answer = server.infer(model="endless")

    assert (answer.status_code, answer.json()["code"]) == (504, "timed-out"), answer.text
    assert find_marked(JOB_MARK, answer.headers["x-pfms-job"]) == []


@pytest.mark.parametrize("executor", ["fresh", "warm"])
@pytest.mark.parametrize("name", ["log_is_a_fifo_and_it_hangs", "log_is_a_link_and_it_hangs"])
def test_a_run_that_replaced_its_log_can_be_followed_and_cancelled(
    start_server: StartServer, tmp_path: Path, name: str, executor: str
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(SECRET)
    seed_model(tmp_path / "workspace", "hangs", f"misbehaving/{name}".encode())
    server = start_server("as_the_model_says.py", executor=executor, grace_seconds=0.2)
    job_id = server.submit(model="hangs")
    log = server.workspace / "jobs" / job_id / "plugin.log"
    eventually(lambda: log.is_fifo() or log.is_symlink())

    for path in ("log", "bundle"):
        answer = server.http.get(f"/jobs/{job_id}/{path}")
        assert answer.status_code == 200
        assert SECRET not in answer.content
    server.http.post(f"/jobs/{job_id}/cancel")

    assert server.ended(job_id)["state"] == "cancelled"
    assert server.infer().status_code == 200
    assert stat.S_ISREG(log.lstat().st_mode)
    assert server.stop() == 0


def test_a_link_in_the_place_of_a_job_is_left_alone_at_a_start(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server()
    job_id = server.submit()
    server.ended(job_id)
    server.stop()
    folder = server.workspace / "jobs" / job_id
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    before = state_of(tmp_path / "elsewhere")

    server = start_server()

    assert f"jobs/{job_id} is a link and is left alone" in server.log.read_text()
    for path in ("log", "result", "volume", "bundle?voxels=true", "preview.png"):
        content = server.http.get(f"/jobs/{job_id}/{path}").content
        assert b"novel inference" not in content
        assert not content.startswith((b"\x1f\x8b", b"\x89PNG")), path
    assert folder.is_symlink()
    assert state_of(tmp_path / "elsewhere") == before
