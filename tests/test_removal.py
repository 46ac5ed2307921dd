"""Jobs that are deleted, purged, tidied and downloaded at once: what is gone stays gone.

Each round is one job that has succeeded. Clones of one real run, of different ages, are put into a
workspace, so that a server with time limits finds some of them due when it starts; at the same time
clients make every other kind of call. Every download has to be complete or refused, and every job
complete, purged or gone: at once, after a restart, and after the next housekeeping.
"""

import io
import json
import os
import random
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import (
    Server,
    StartServer,
    eventually,
    image_of,
    nifti_bytes,
    seed_model,
    spleen_of,
    start,
)

ROUNDS = 25  # of one seed
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.every) for seed in range(1, 40))]
AT_ONCE = 12
SETTLE_SECONDS = 20
VOLUME = nifti_bytes((40, 36, 32), seed=9)
WEIGHTS = random.Random(9).randbytes(300_000)  # so that a bundle goes out in several pieces

# What a server of these limits does to a job of each age, in hours.
LIMITS = {"keep_volumes_hours": 24.5, "keep_records_days": 30.5}
KEPT, PURGED, REMOVED = 1, 48, 24 * 60

DOWNLOADS = [
    "",
    "/result",
    "/result?resultant=onehot",
    "/volume",
    "/log",
    "/preview.png",
    "/bundle",
    "/bundle?voxels=true",
]
REFUSALS = {404: {"job-not-found"}, 409: {"job-active"}, 410: {"gone"}}
RECORD = {"job.json", "command.sh", "plugin.log"}
VOXELS = {"input/imagesTs/input.nii.gz", "input/model.pth", "result/segmentation.nii.gz"}


@dataclass
class Round:
    """One job, how old it is (hours), and how each call about it was answered."""

    id: str
    age: int
    answers: dict[str, int] = field(default_factory=dict)
    gone: bool = False  # it was seen to be removed

    def was(self, call: str) -> bool:
        return self.answers.get(call) == 204


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that has run."""
    workspace = tmp_path_factory.mktemp("original") / "workspace"
    seed_model(workspace, content=WEIGHTS)
    one = start(workspace)
    job_id: str = one.infer(VOLUME).headers["X-Pfms-Job"]
    one.stop()
    return workspace / "jobs" / job_id


def clone(original: Path, jobs: Path, age: int) -> Round:
    """Put a copy of the original job into a workspace, as if it had run `age` hours ago."""
    record = json.loads((original / "job.json").read_text())
    moment = datetime.now(UTC) - timedelta(hours=age)
    record["id"] = f"{moment:%Y-%m-%d-%H-%M-%S}-{uuid.uuid4()}"
    for name in ("created_at", "started_at", "ended_at"):
        was = datetime.fromisoformat(record[name])
        record[name] = record[name].replace(
            was.isoformat(timespec="seconds")[:19], moment.isoformat(timespec="seconds")[:19]
        )
    shutil.copytree(original, jobs / record["id"])
    (jobs / record["id"] / "job.json").write_text(json.dumps(record))
    return Round(record["id"], age)


def check_download(path: str, answer: httpx.Response) -> None:
    """Check that an answer is complete, or a problem that says why there is nothing."""
    if answer.status_code != 200:
        assert answer.status_code in REFUSALS, answer.text
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        assert answer.json()["code"] in REFUSALS[answer.status_code], answer.text
        return
    if "content-length" in answer.headers:
        assert len(answer.content) == int(answer.headers["content-length"])
    match path:
        case "/result":
            labels = np.asanyarray(image_of(answer.content).dataobj)
            np.testing.assert_array_equal(labels, spleen_of(VOLUME))
        case "/result?resultant=onehot":
            onehot = np.asanyarray(image_of(answer.content).dataobj)
            np.testing.assert_array_equal(onehot[..., 1], spleen_of(VOLUME))
        case "/volume":
            assert answer.content == VOLUME
        case "/log":
            assert "novel inference" in answer.text, f"not the whole log: {answer.text!r}"
        case "/preview.png":
            Image.open(io.BytesIO(answer.content)).load()
        case "/bundle" | "/bundle?voxels=true":
            with zipfile.ZipFile(io.BytesIO(answer.content)) as bundle:
                assert bundle.testzip() is None
                names = {name.partition("/")[2] for name in bundle.namelist()}
            missing = (RECORD | VOXELS if "voxels" in path else RECORD) - names
            assert not missing, f"the bundle lacks {sorted(missing)}"
        case _:
            assert answer.json()["state"] == "succeeded"


def race(server: Server, rounds: list[Round], chance: random.Random) -> list[str]:
    """Make all calls of all rounds, `AT_ONCE` at a time; returns what was wrong in the answers."""
    calls = []
    for one in rounds:
        of_this = [("GET", path) for path in DOWNLOADS if chance.random() < 0.7]
        of_this += [("DELETE", "") for _ in range(chance.choice([0, 1, 1, 2]))]
        of_this += [("DELETE", "?purge=voxels") for _ in range(chance.choice([0, 1, 1, 2]))]
        chance.shuffle(of_this)
        calls += [(one, *call) for call in of_this]

    # A connection for each call, so that no call suffers from what went wrong in an earlier one.
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0)
    with httpx.Client(base_url=f"{server.url}/api/v1", timeout=60, limits=limits) as http:

        def make(call: tuple[Round, str, str]) -> str | None:
            one, method, path = call
            try:
                answer = http.request(method, f"/jobs/{one.id}{path}")
                if method == "DELETE":
                    if answer.status_code == 204:
                        one.answers[path] = 204
                    else:
                        check_download(path, answer)
                else:
                    check_download(path, answer)
            except Exception as error:  # every one is told, so that a run says how often
                return f"{method} {one.id}{path}: {type(error).__name__}: {str(error)[:300]}"
            return None

        with ThreadPoolExecutor(AT_ONCE) as threads:
            return [wrong for wrong in threads.map(make, calls) if wrong]


def state(server: Server, one: Round) -> str:
    """`kept`, `purged` or `removed`, after checking everything that such a job must have."""
    folder = server.workspace / "jobs" / one.id
    there = {  # by os.walk, since a pathlib that meets a folder on its way out warns
        str((Path(place) / name).relative_to(folder))
        for place, _, names in os.walk(folder)
        for name in names
    }
    answer = server.http.get(f"/jobs/{one.id}")
    if answer.status_code == 404:
        assert not folder.exists(), f"without a row: {there}"
        return "removed"
    job: dict[str, Any] = answer.json()
    record = json.loads((folder / "job.json").read_text())
    assert record["purged_at"] == job["purged_at"], "folder and row differ"
    if job["purged_at"]:
        assert there == RECORD, f"half removed: {there}"
        return "purged"
    assert there >= RECORD | VOXELS, f"half removed: {there}"
    return "kept"


def wrong_now(server: Server, rounds: list[Round]) -> Iterator[str]:
    """What is wrong in the workspace at this moment."""
    listed = {job["id"] for job in server.http.get("/jobs?limit=1000").json()["jobs"]}
    folders = {folder.name for folder in server.job_folders()}
    if listed != folders:
        yield f"rows without a folder: {listed - folders}; without a row: {folders - listed}"
    if server.uploads():
        yield f"left in uploads: {server.uploads()}"
    for one in rounds:
        try:
            now = state(server, one)
            assert not one.was("") or now == "removed", "it was deleted"
            assert not one.was("?purge=voxels") or now != "kept", "it was purged"
            assert not one.gone or now == "removed", "it has come back"
            one.gone = now == "removed"
        except (AssertionError, OSError) as error:
            yield f"{one.id}: {error}"


def wrong_at_last(server: Server, rounds: list[Round], *, tidied: bool = False) -> list[str]:
    """What is still wrong after the housekeeping, which reports to nobody, has had time to work.

    With `tidied`, every job that is due has to be gone by then as well.
    """
    wrong: list[str] = []

    def all_holds() -> bool:
        wrong[:] = wrong_now(server, rounds)
        due = {PURGED: {"purged", "removed"}, REMOVED: {"removed"}} if tidied else {}
        return not wrong and all(
            state(server, one) in due[one.age] for one in rounds if one.age in due
        )

    try:
        eventually(all_holds, SETTLE_SECONDS)
    except AssertionError:
        wrong = wrong or ["what is due is not gone"]
    return wrong


@pytest.mark.parametrize("seed", SEEDS)
def test_jobs_that_are_removed_while_being_read_and_tidied_stay_removed(
    start_server: StartServer, original: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    workspace = tmp_path / "workspace"
    ages = [chance.choice([KEPT, PURGED, REMOVED]) for _ in range(ROUNDS)]
    rounds = [clone(original, workspace / "jobs", age) for age in ages]
    chance.shuffle(rounds)

    server = start_server(workspace=workspace, **LIMITS)
    wrong = race(server, rounds, chance)
    wrong += wrong_at_last(server, rounds)
    server.stop()
    server = start_server(workspace=workspace, **LIMITS)
    wrong += wrong_at_last(server, rounds, tidied=True)

    assert not wrong, "\n".join(wrong)
    assert "Traceback" not in server.log.read_text()
