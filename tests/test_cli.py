"""The command line as a process: what it prints, what it writes, its exit codes."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pfms.client.client import Client
from pfms.client.updates import Update
from pfms.commands.infer import _cancelled
from tests.command import COMMAND, environment, finish, pfms, running
from tests.conftest import ROOT, Server, StartServer, eventually, nifti_bytes
from tests.small_server import Answers, small_server

HEAVY = ("torch", "numpy", "nibabel", "fastapi", "uvicorn", "pydantic", "httpx")
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a CT in it."""
    (tmp_path / "CT.nii.gz").write_bytes(nifti_bytes())
    return tmp_path


def ids(server: Server) -> set[str]:
    return {path.name for path in server.job_folders()}


# --- in general ----------------------------------------------------------------------------


def test_it_starts_without_what_only_some_commands_need() -> None:
    code = "import sys, pfms.cli; print(*sys.modules)"
    line = [sys.executable, "-c", code]
    loaded = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert set(HEAVY) & set(loaded) == set()


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert re.fullmatch(r"pfms \d+\.\d+\.\d+\n", pfms("--version", cwd=tmp_path).stdout)


@pytest.mark.parametrize(
    "line",
    [
        ["infer", "CT.nii.gz", "--model", "demo"],
        ["models", "list"],
        ["models", "rm", "demo"],
        ["jobs", "list", "--json"],
        ["jobs", "log", "x", "-f"],
    ],
)
def test_a_server_that_cannot_be_reached_is_3_and_one_line(folder: Path, line: list[str]) -> None:
    done = pfms(*line, cwd=folder, code=3, server=NOWHERE)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert NOWHERE in done.stderr
    assert "pfms serve" in done.stderr


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (["infer", "CT.nii.gz", "--model", "nope"], "model-not-found"),
        (["infer", "CT.nii.gz", "--model", "a/b"], "invalid-model-id"),
        (["infer", "text.txt", "--model", "demo"], "not-a-nifti"),
        (["models", "show", "nope"], "model-not-found"),
        (["models", "rm", ".."], "not-found"),
        (["models", "add", "text.txt", "--id", "x"], "not-a-model"),
        (["jobs", "show", "nope"], "job-not-found"),
        (["jobs", "rm", "nope"], "job-not-found"),
        (["jobs", "cancel", "nope"], "job-not-found"),
        (["jobs", "log", "nope"], "job-not-found"),
    ],
)
def test_a_refused_request_is_2_with_its_code_and_remedy(
    server: Server, folder: Path, line: list[str], word: str
) -> None:
    (folder / "text.txt").write_text("this is text\n")
    before = ids(server)
    done = pfms(*line, cwd=folder, code=2, server=server.url)
    assert word in done.stderr.splitlines()[-1]
    assert ids(server) == before
    assert {path.name for path in folder.iterdir()} == {"CT.nii.gz", "text.txt"}


@pytest.mark.parametrize(
    "line",
    [
        ["infer", "CT.nii.gz"],
        ["infer", "missing.nii.gz", "--model", "demo"],
        ["infer", "empty", "--model", "demo"],
        ["infer", "*.nii", "--model", "demo"],
        ["infer", ".", "--model", "demo", "-o", "CT.nii.gz"],
        ["infer", ".", "--model", "demo", "--force", "--skip-existing"],
        ["infer", "CT.nii.gz", "--model", "demo", "--resultant", "png"],
        ["infer", "CT.nii.gz", "--model", "demo", "-o", "no/such/folder.nii.gz"],
        ["infer", "CT.nii.gz", "--model", "demo", "--server", "ftp://x"],
        ["jobs", "list", "--state", "tired"],
        ["jobs", "list", "--limit", "0"],
        ["unknown"],
        [],
    ],
)
def test_wrong_usage_is_2_and_contacts_no_server(folder: Path, line: list[str]) -> None:
    (folder / "empty").mkdir()
    pfms(*line, cwd=folder, code=2, server=NOWHERE)


# --- infer ---------------------------------------------------------------------------------


def test_infer_saves_the_segmentation_beside_and_says_what_it_is(
    server: Server, folder: Path
) -> None:
    before = ids(server)
    done = pfms("infer", "CT.nii.gz", "--model", "demo", cwd=folder, server=server.url)
    (job_id,) = ids(server) - before
    saved = (folder / "CT-spleen.nii.gz").read_bytes()
    assert saved == server.http.get(f"/jobs/{job_id}/result").content
    found = server.job(job_id)["segmentation"]
    assert done.stdout.startswith(f"CT-spleen.nii.gz: spleen {found['spleen_ml']:.1f} ml")
    assert job_id in done.stdout
    assert done.stderr == "", "without a terminal it is quiet"


def test_infer_on_a_terminal_draws_a_bar_and_removes_it(server: Server, folder: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "infer", "CT.nii.gz", "--model", "demo", "--server", server.url],
        cwd=folder,
        env=environment() | {"TERM": "xterm-256color"},
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    drawn = b""
    try:
        while piece := os.read(ours, 65536):
            drawn += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "━".encode() in drawn
    assert b"waiting" in drawn
    assert drawn.rstrip().endswith(b"\x1b[2K"), "its line is erased"
    assert b"\x1b" not in said


def test_infer_replaces_nothing_unless_forced(server: Server, folder: Path) -> None:
    there = folder / "CT-spleen.nii.gz"
    there.write_text("mine")
    before = ids(server)
    line = ["infer", "CT.nii.gz", "--model", "demo"]
    done = pfms(*line, cwd=folder, code=2, server=server.url)
    assert "--force" in done.stderr
    assert there.read_text() == "mine"
    assert ids(server) == before
    pfms(*line, "--force", cwd=folder, server=server.url)
    assert there.read_bytes().startswith(b"\x1f\x8b")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a.nii", [], "a-spleen.nii.gz"),
        ("b.NII.GZ", [], "b-spleen.nii.gz"),
        ("c", ["--resultant", "onehot"], "c-onehot.nii.gz"),
        ("d.nii.gz", ["-o", "sub"], "sub/d-spleen.nii.gz"),
        ("e.nii.gz", ["--out", "sub/x.nii.gz"], "sub/x.nii.gz"),
    ],
)
def test_infer_names_its_output(
    server: Server, tmp_path: Path, name: str, options: list[str], expected: str
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / name).write_bytes(nifti_bytes(gzipped="z" in name.lower()))
    line = ["infer", f"ct/{name}", "--model", "demo", "--json", *options]
    told = json.loads(pfms(*line, cwd=tmp_path, server=server.url).stdout)
    assert told["output"] == expected
    assert (tmp_path / expected).is_file()
    assert told["job"]["state"] == "succeeded"


def test_a_run_that_fails_is_1_with_its_cause(start_server: StartServer, folder: Path) -> None:
    server = start_server("exit3.py")
    done = pfms("infer", "CT.nii.gz", "--model", "demo", cwd=folder, code=1, server=server.url)
    last = done.stderr.splitlines()[-1]
    assert "plugin-failed" in last
    assert server.job_folders()[0].name in last
    assert [path.name for path in folder.glob("*.nii.gz")] == ["CT.nii.gz"]


def test_a_warning_about_the_run_is_printed(start_server: StartServer, folder: Path) -> None:
    server = start_server("short_stack.py")
    (folder / "thin.nii.gz").write_bytes(nifti_bytes((24, 20, 12)))
    done = pfms("infer", "thin.nii.gz", "--model", "demo", cwd=folder, server=server.url)
    assert "warning: The volume has fewer than 21 slices" in done.stderr


def test_ctrl_c_cancels_the_run_and_says_so(start_server: StartServer, folder: Path) -> None:
    server = start_server("hangs.py")
    line = ["infer", "CT.nii.gz", "--model", "demo"]
    with running(*line, cwd=folder, server=server.url) as process:
        eventually(
            lambda: server.job_folders() and server.http.get("/jobs?state=running").json()["jobs"]
        )
        process.send_signal(signal.SIGINT)
        _, err = finish(process, 130)
    job_id = server.job_folders()[0].name
    assert f"job {job_id} is cancelled" in err
    assert server.ended(job_id)["state"] == "cancelled"


def test_ctrl_c_while_the_result_is_checked_cancels_the_job_too(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    job_id = server.submit()
    with Client(server.url) as client:
        said, _ = _cancelled(client, Update("checking", 10, 100, job_id))
    assert said == f"interrupted: job {job_id} is cancelled"
    assert server.ended(job_id)["state"] == "cancelled"


def test_ctrl_c_before_the_answer_says_what_may_be(folder: Path) -> None:
    looks, go_on = threading.Event(), threading.Event()

    def answer(request: Answers) -> None:
        if request.command == "GET":
            request.say(b"{}", 404)
            return
        request.skip_body()
        looks.set()
        go_on.wait(30)

    with small_server(answer) as url:
        line = ["infer", "CT.nii.gz", "--model", "demo"]
        with running(*line, cwd=folder, server=url) as process:
            assert looks.wait(30)
            process.send_signal(signal.SIGINT)
            _, err = finish(process, 130)
        go_on.set()
    assert "interrupted while the server was checking" in err
    assert "pfms jobs list" in err


# --- models --------------------------------------------------------------------------------


def test_models_are_added_listed_shown_and_removed(server: Server, tmp_path: Path) -> None:
    weights = ROOT / "examples" / "demo_model.pth"
    added = pfms("models", "add", weights, "--id", "cli", cwd=tmp_path, server=server.url)
    assert added.stdout.startswith("cli: 19.3 MB, sha256 ")
    assert "warning: The weights were float16" in added.stderr
    listed = json.loads(pfms("models", "list", "--json", cwd=tmp_path, server=server.url).stdout)
    assert [model["modelID"] for model in listed["models"]] == ["cli", "demo"]
    table = pfms("models", "list", cwd=tmp_path, server=server.url).stdout.splitlines()
    assert [row.split()[0] for row in table] == ["ID", "cli", "demo"]
    shown = pfms("models", "show", "cli", cwd=tmp_path, server=server.url).stdout
    assert listed["models"][0]["sha256"] in shown
    pfms("models", "rm", "cli", cwd=tmp_path, server=server.url)
    pfms("models", "show", "cli", cwd=tmp_path, code=2, server=server.url)


# --- jobs ----------------------------------------------------------------------------------


def test_jobs_are_listed_shown_and_removed(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    url = server.url
    first, second = (server.ended(server.submit(nifti_bytes(seed=n)))["id"] for n in range(2))
    table = pfms("jobs", "list", cwd=tmp_path, server=url).stdout.splitlines()
    assert [row.split()[0] for row in table] == ["ID", second, first]
    listed = pfms("jobs", "list", "--json", "--limit", "1", cwd=tmp_path, server=url).stdout
    assert [job["id"] for job in json.loads(listed)["jobs"]] == [second]
    line = ["jobs", "list", "--json", "--state", "failed", "--model", "demo"]
    assert json.loads(pfms(*line, cwd=tmp_path, server=url).stdout) == {"jobs": []}
    shown = pfms("jobs", "show", first, cwd=tmp_path, server=url).stdout
    assert "state      succeeded" in shown
    assert "24 x 20 x 24, 3 x 3 x 3 mm, RAS" in shown
    assert json.loads(pfms("jobs", "show", first, "--json", cwd=tmp_path, server=url).stdout)
    log = pfms("jobs", "log", first, cwd=tmp_path, server=url).stdout
    assert log == server.http.get(f"/jobs/{first}/log").text
    ended = pfms("jobs", "cancel", first, cwd=tmp_path, server=url).stdout
    assert "had already ended: succeeded" in ended
    pfms("jobs", "rm", "--purge-voxels", first, cwd=tmp_path, server=url)
    assert "voxels purged" in pfms("jobs", "list", cwd=tmp_path, server=url).stdout
    pfms("jobs", "rm", first, second, cwd=tmp_path, server=url)
    assert server.job_folders() == []


def test_a_log_is_followed_until_the_job_is_cancelled(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("hangs.py")
    job_id = server.submit()
    with running("jobs", "log", "-f", job_id, cwd=tmp_path, server=server.url) as process:
        assert process.stdout
        assert process.stdout.readline() == "hanging\n"
        refused = pfms("jobs", "rm", job_id, cwd=tmp_path, code=2, server=server.url)
        assert "job-active" in refused.stderr
        cancelled = pfms("jobs", "cancel", job_id, cwd=tmp_path, server=server.url)
        assert "is being cancelled" in cancelled.stdout
        finish(process, 0)


def test_the_table_is_rebuilt_once_no_server_holds_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server()
    job_id = server.ended(server.submit())["id"]
    line = ["jobs", "reindex", "--workspace", str(server.workspace)]
    held = pfms(*line, cwd=tmp_path, code=2)
    assert str(server.process.pid) in held.stderr
    server.stop()
    for file in server.workspace.glob("pfms.db*"):
        file.unlink()
    (server.workspace / "jobs" / job_id.replace("-", "-0", 1)).mkdir()
    done = pfms(*line, cwd=tmp_path, code=1)
    assert done.stdout.endswith(": 1\n")
    assert "damaged: 1." in done.stderr
    again = start_server(workspace=server.workspace)
    eventually(lambda: again.job(job_id)["state"] == "succeeded")


def test_a_folder_that_is_not_a_workspace_is_not_made_one(tmp_path: Path) -> None:
    pfms("jobs", "reindex", "--workspace", tmp_path / "typo", cwd=tmp_path, code=2)
    assert list(tmp_path.iterdir()) == []
