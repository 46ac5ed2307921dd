"""After a power cut, a server started on what is on the disk keeps what clients were told."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pfms.processes.marks import WORKSPACE_MARK, find_marked
from pfms.storage.workspace import Workspace
from tests.conftest import Server, eventually, seed_model, start
from tests.power_cut.clients import Clients, Told, sha256
from tests.power_cut.disk import Names, WatchedDisk, compile_shim

KEPT_BY_A_PURGE = {"command.sh", "plugin.log", "job.json"}


@dataclass(frozen=True)
class Moment:
    """When the power fails: after `answers` answers and, with `model`, once a model is stored."""

    seed: str
    answers: int
    model: bool

    def has_come(self, told: Told) -> bool:
        return told.answers >= self.answers and bool(told.models or not self.model)


def moments(count: int) -> list[Moment]:
    rng = random.Random(7)
    return [Moment(f"{n}", rng.randint(5, 500), n % 3 == 0) for n in range(count)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler here: cc")
    folder = tmp_path_factory.mktemp("shim")
    library = compile_shim(folder)
    if not tells_births(folder):
        pytest.skip("the file system here does not keep when a file was made")
    return library


def tells_births(folder: Path) -> bool:
    told = subprocess.run(["stat", "-c", "%W", folder], capture_output=True, text=True, check=True)
    return told.stdout.strip() not in ("0", "-")


@contextlib.contextmanager
def serving(workspace: Path, prefix: tuple[str, ...] = ()) -> Iterator[Server]:
    server = start(workspace, "as_the_model_says.py", prefix=prefix)
    try:
        yield server
    finally:
        cut(server)


def cut(server: Server) -> None:
    """Kill all processes of a server at once."""
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()
        for marked in find_marked(WORKSPACE_MARK, Workspace(server.workspace).mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(marked.pid, signal.SIGKILL)
    server.stop()


def told_until(moment: Moment, library: Path, folder: Path) -> tuple[Told, WatchedDisk]:
    """What clients were told up to a moment, and the disk as it is then."""
    workspace = folder / "workspace"
    for name in ("demo", "exit3"):
        seed_model(workspace, name, b"weights" if name == "demo" else name.encode())
    disk = WatchedDisk(workspace, folder / "notes", library)
    disk.sync_all()
    with serving(workspace, disk.watched()) as server:
        clients = Clients(server, moment.seed)
        try:
            eventually(lambda: clients.faults or moment.has_come(clients.told), seconds=90)
        finally:
            cut(server)
            told = clients.join()
    return told, disk


def check(server: Server, told: Told) -> None:
    """Check that what clients were told is true, and that nothing incomplete is served."""
    assert server.uploads() == []
    listed = [job["id"] for job in server.http.get("/jobs?limit=1000").json()["jobs"]]
    for job_id in {*listed, *told.volumes}:
        if job_id in told.deleted:
            assert server.http.get(f"/jobs/{job_id}").status_code == 404
            assert not (server.workspace / "jobs" / job_id).exists()
        elif job_id in listed or job_id not in told.deleting:
            check_job(server, told, job_id)
    for name, checksum in told.models.items():
        assert server.http.get(f"/spleenseg/modelpth/{name}").json()["sha256"] == checksum
        stored = server.workspace / "models" / name / "model.pth"
        assert sha256(stored.read_bytes()) == checksum
    for job_id, key in told.keys.items():
        if job_id not in told.deleting:
            again = server.infer(told.volumes[job_id], headers={"Idempotency-Key": key})
            assert again.headers["x-pfms-job"] == job_id


def check_job(server: Server, told: Told, job_id: str) -> None:
    job = server.ended(job_id)
    if job_id in told.ended:
        assert job["state"] == told.ended[job_id]["state"]
    elif job_id in told.cancelled:
        assert job["state"] == "cancelled"
    elif job_id in told.volumes and job_id not in told.cancelling:
        assert job["state"] == ("failed" if job_id in told.fails else "succeeded"), job
    if job_id in told.logs:
        assert server.http.get(f"/jobs/{job_id}/log").text == told.logs[job_id]
    if job_id in told.purged:
        assert job["purged_at"]
        assert server.http.get(f"/jobs/{job_id}/result").status_code == 410
        folder = server.workspace / "jobs" / job_id
        assert {path.name for path in folder.iterdir()} <= KEPT_BY_A_PURGE
    elif job["state"] == "succeeded":
        check_files(server, told, job, whole=job_id not in told.purging | told.deleting)


def check_files(server: Server, told: Told, job: dict[str, object], *, whole: bool) -> None:
    """Check that each file is as recorded and reported, or without `whole`, that it is refused."""
    job_id, recorded = str(job["id"]), job["segmentation"]
    assert isinstance(recorded, dict)
    facts = {"labels": recorded, **recorded.get("files", {})}
    made = ("labels", "onehot", "logits") if job["resultant"] == "logits" else ("labels", "onehot")
    for resultant in made:
        answer = server.http.get(f"/jobs/{job_id}/result", params={"resultant": resultant})
        if answer.status_code == 200:
            found = sha256(answer.content)
            assert (len(answer.content), found) == (
                facts[resultant]["size"],
                facts[resultant]["sha256"],
            )
            assert told.results.get((job_id, resultant), found) == found
        else:
            assert not whole, (job_id, resultant, answer.text)
    if whole and job_id in told.volumes:
        volume = server.workspace / "jobs" / job_id / "input" / "imagesTs" / "input.nii.gz"
        assert volume.read_bytes() == told.volumes[job_id]


def hold_after(
    moment: Moment, library: Path, folder: Path, states: list[tuple[Names, bool]]
) -> None:
    told, disk = told_until(moment, library, folder)
    for number, (names, table_is_lost) in enumerate(states):
        workspace = folder / f"after-{number}"
        disk.after_a_cut(workspace, names, random.Random(f"{moment.seed} {number}"))
        if table_is_lost:
            for file in workspace.glob("pfms.db*"):
                file.unlink()
        with serving(workspace) as server:
            check(server, told)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("moment", "names", "table_is_lost"),
    list(zip(moments(3), ("synced", "all", "mixed"), (False, True, False), strict=True)),
    ids=["nothing more survives", "all names survive", "some folders survive"],
)
def test_what_a_client_was_told_holds_after_a_power_cut(
    moment: Moment, names: Names, table_is_lost: bool, library: Path, tmp_path: Path
) -> None:
    hold_after(moment, library, tmp_path, [(names, table_is_lost)])


@pytest.mark.every
@pytest.mark.timeout(600)
@pytest.mark.parametrize("moment", moments(50), ids=lambda moment: moment.seed)
def test_what_a_client_was_told_holds_whenever_the_power_goes(
    moment: Moment, library: Path, tmp_path: Path
) -> None:
    hold_after(
        moment,
        library,
        tmp_path,
        [("synced", False), ("synced", True), ("all", False), ("all", True), ("mixed", False)],
    )
