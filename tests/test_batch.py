"""`pfms infer` with several volumes."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from pfms.commands.volumes import found
from tests.command import finish, pfms, running
from tests.conftest import Server, StartServer, eventually, image_of, nifti_bytes, spleen_of

LINE = ("infer", "cts", "--model", "demo", "--out", "seg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with volumes in `cts`."""
    put(tmp_path, "cts/a.nii.gz", "cts/b.nii.gz", "cts/deeper/c.nii.gz")
    return tmp_path


def put(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(nifti_bytes(seed=seed, gzipped=name.endswith("gz")))


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {line["file"]: line for line in csv.DictReader(file)}


def jobs(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.http.get("/jobs?limit=1000").json()["jobs"]
    return found


# --- which volumes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cts"], {"a.nii.gz": "a", "b.nii": "b", "deeper/a.nii.gz": "deeper/a"}),
        (["cts/a.nii.gz", "cts/b.nii"], {"a.nii.gz": "a", "b.nii": "b"}),
        (["cts/a.nii.gz", "cts/./a.nii.gz"], {"a.nii.gz": "a"}),
        (["cts/*.nii*"], {"a.nii.gz": "a", "b.nii": "b"}),
        (["c*"], {"a.nii.gz": "cts/a", "b.nii": "cts/b", "deeper/a.nii.gz": "cts/deeper/a"}),
        (["cts/deeper", "cts/b.nii"], {"deeper/a.nii.gz": "a", "b.nii": "b"}),
    ],
)
def test_files_folders_and_patterns_name_volumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: dict[str, str]
) -> None:
    put(tmp_path, "cts/a.nii.gz", "cts/b.nii", "cts/deeper/a.nii.gz")
    put(tmp_path, "cts/.hidden.nii.gz", "cts/.git/x.nii.gz")
    (tmp_path / "cts" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)

    tasks = found(words, Path("seg"), "labels")

    assert {str(task.volume.relative_to("cts")): str(task.target) for task in tasks} == {
        name: f"seg/{stem}-spleen.nii.gz" for name, stem in expected.items()
    }


def test_results_of_an_earlier_call_are_no_volumes(tmp_path: Path) -> None:
    put(tmp_path, "a.nii.gz", "a-spleen.nii.gz", "a-onehot.nii.gz", "post-spleen.nii.gz")
    tasks = found([str(tmp_path)], tmp_path, "labels")
    assert {task.volume.name for task in tasks} == {"a.nii.gz", "post-spleen.nii.gz"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["cts/a.nii", "cts/a.nii.gz"], "would both be"),
        (["cts/a.nii", "missing"], "missing is no file"),
        (["empty"], "empty is no file"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], problem: str
) -> None:
    put(tmp_path, "cts/a.nii.gz", "cts/a.nii")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=problem):
        found(words, Path(), "labels")


# --- one call ----------------------------------------------------------------------------------


def test_one_that_fails_does_not_keep_the_others_from_being_done(
    server: Server, folder: Path
) -> None:
    (folder / "cts" / "b.nii.gz").write_text("no volume")
    done = pfms(*LINE, "--csv", "t.csv", cwd=folder, code=1, server=server.url)
    rows = table(folder / "t.csv")
    assert list(rows) == ["cts/a.nii.gz", "cts/b.nii.gz", "cts/deeper/c.nii.gz"]
    for name, volume in (("a", "cts/a.nii.gz"), ("deeper/c", "cts/deeper/c.nii.gz")):
        made = (folder / "seg" / f"{name}-spleen.nii.gz").read_bytes()
        voxels = spleen_of((folder / volume).read_bytes())
        assert (image_of(made).get_fdata() == voxels).all()
        row = rows[volume]
        assert float(row["ml"]) == pytest.approx(voxels.sum() * 0.027, abs=0.1)
        assert float(row["seconds"]) > 0
        assert server.job(row["job"])["state"] == "succeeded"
        assert row["output"] == f"seg/{name}-spleen.nii.gz"
        assert row["job"] in done.stdout
    assert rows["cts/b.nii.gz"]["error"].startswith("not-a-nifti: ")
    assert done.stdout.splitlines()[0].split() == ["FILE", "ML", "SECONDS", "JOB", "WARNINGS"]
    assert len(done.stdout.splitlines()) == 4
    assert done.stderr.splitlines() == [
        "pfms: 1 of 3 volumes have no result. --skip-existing tries these again."
    ]
    assert sorted(path.name for path in (folder / "seg").rglob("*.*")) == [
        "a-spleen.nii.gz",
        "c-spleen.nii.gz",
    ]


def test_what_exists_is_kept_skipped_or_replaced(server: Server, folder: Path) -> None:
    there = folder / "seg" / "a-spleen.nii.gz"
    there.parent.mkdir()
    there.write_text("mine")
    before = len(jobs(server))
    assert "--force" in pfms(*LINE, cwd=folder, code=2, server=server.url).stderr
    assert len(jobs(server)) == before
    done = pfms(*LINE, "--skip-existing", "--json", cwd=folder, server=server.url)
    rows = json.loads(done.stdout)["results"]
    assert [bool(row["job"]) for row in rows] == [False, True, True]
    assert len(jobs(server)) == before + 2
    assert there.read_text() == "mine"
    pfms(*LINE, "--force", "--jobs", "1", cwd=folder, server=server.url)
    assert there.read_bytes()[:2] == b"\x1f\x8b"
    assert len(jobs(server)) == before + 5, "it is done again if that is asked for"


def test_a_server_that_is_not_there_is_3(folder: Path) -> None:
    done = pfms(*LINE, "--csv", "t.csv", cwd=folder, code=3, server="http://127.0.0.1:1")
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "t.csv").exists()


def test_ctrl_c_cancels_all_runs(start_server: StartServer, folder: Path) -> None:
    server = start_server("hangs.py")
    with running(*LINE, "--jobs", "2", cwd=folder, server=server.url) as process:
        eventually(lambda: len(jobs(server)) == 2)
        eventually(lambda: any(job["state"] == "running" for job in jobs(server)))
        process.send_signal(signal.SIGINT)
        _, err = finish(process, 130)
    assert "cancelled: 2" in err
    eventually(lambda: [job["state"] for job in jobs(server)] == ["cancelled"] * 2)


def test_ctrl_c_does_not_wait_for_a_server_that_is_away(
    start_server: StartServer, folder: Path
) -> None:
    server = start_server("hangs.py")
    with running(*LINE, cwd=folder, server=server.url) as process:
        eventually(lambda: any(job["state"] == "running" for job in jobs(server)))
        server.process.kill()
        server.process.wait()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)  # the client would wait for minutes
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err


# --- call after call ---------------------------------------------------------------------------


def test_20_volumes_killed_in_the_middle_are_done_once_each(
    start_server: StartServer, tmp_path: Path
) -> None:
    names = [f"cts/{n % 3}/{n}.nii.gz" for n in range(20)]
    put(tmp_path, *names)
    line = (*LINE, "--skip-existing", "--csv", "t.csv")
    first = start_server("slow.py", jobs_per_device=2)
    with running(*line, cwd=tmp_path, server=first.url) as process:
        eventually(lambda: len(list((tmp_path / "seg").rglob("*.nii.gz"))) >= 5)
        process.kill()
        process.wait()
    first.process.kill()
    first.process.wait()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "seg").rglob("[!.]*.nii.gz")}
    assert 5 <= len(made) < 20

    second = start_server("slow.py", jobs_per_device=2)
    pfms(*line, cwd=tmp_path, server=second.url)

    rows = table(tmp_path / "t.csv")
    assert rows.keys() == set(names)
    for name, row in rows.items():
        voxels = spleen_of((tmp_path / name).read_bytes())
        assert (image_of((tmp_path / row["output"]).read_bytes()).get_fdata() == voxels).all()
    assert len([path for path in made if path.stat().st_mtime_ns == made[path]]) == len(made)
    all_jobs = jobs(second)
    assert len(all_jobs) == 20
    assert {job["state"] for job in all_jobs} == {"succeeded"}
    assert len({job["volume"]["sha256"] for job in all_jobs}) == 20
    # A result may have been saved in the moment before its row was.
    assert len([row for row in rows.values() if row["ml"]]) >= 16


def test_what_failed_is_tried_once_more_by_each_call(
    start_server: StartServer, folder: Path
) -> None:
    server = start_server("exit3.py")
    line = ("infer", "cts/a.nii.gz", "--model", "demo", "--skip-existing")
    for calls in (1, 2, 3):
        pfms(*line, cwd=folder, code=1, server=server.url)
        assert len(jobs(server)) == calls


def test_a_result_that_was_purged_is_made_again(server: Server, folder: Path) -> None:
    line = ("infer", "cts/b.nii.gz", "--model", "demo", "--skip-existing", "--json")

    def once() -> str:
        (row,) = json.loads(pfms(*line, cwd=folder, server=server.url).stdout)["results"]
        (folder / "b-spleen.nii.gz").unlink()
        return str(row["job"])

    first = once()
    assert once() == first, "the same volume, weights and options: it is joined"
    assert server.http.delete(f"/jobs/{first}?purge=voxels").status_code == 204
    assert once() != first
