"""How far a run is: told by the plugin's steps, passed on in order, drawn as one bar."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from examples.phantoms import make_phantom
from pfms.client.updates import Update
from pfms.commands.progress import Bar, words
from pfms.jobs.estimates import DEFAULT_SHARES, Estimates, Shares
from pfms.plugin.types import STAGES, Progress
from pfms.programs import warm_progress
from tests.conftest import ROOT, Server, StartServer, start_real

Told = list[tuple[str, int, int]]


# --- what a run tells ----------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(warm_progress, "_SECONDS", 0.0)
    return []


@pytest.fixture
def run(told: Told) -> warm_progress._Run:
    run = warm_progress._Run()
    run.begin(lambda *each: told.append(each))
    return run


def test_the_stages_of_a_run_are_all_but_the_last() -> None:
    assert STAGES[:-1] == warm_progress.STAGES


def test_a_step_moves_its_part_of_the_stage(run: warm_progress._Run, told: Told) -> None:
    run.enter("writing", 20, 60)
    for done in range(5):
        run.tell(done, 4)
    run.enter("writing", 60, 60)
    assert told == [("writing", percent, 100) for percent in (20, 30, 40, 50, 60)]


def test_nothing_moves_backwards_or_beyond_the_end(run: warm_progress._Run, told: Told) -> None:
    run.enter("resampling", 0, 100)
    for done, total in ((1, 2), (1, 4), (3, 0), (1, 1), (7, 1)):
        run.tell(done, total)
    run.enter("loading", 0, 50)
    run.windows(1, 8)
    run.tell(1, 3)
    assert told == [("resampling", percent, 100) for percent in (0, 50, 100)]


def test_the_next_run_in_the_same_process_begins_anew(run: warm_progress._Run, told: Told) -> None:
    run.enter("writing", 0, 100)
    run.begin(lambda *each: told.append(each))
    run.tell(1, 2)
    run.enter("loading", 10, 45)
    assert told == [("writing", 0, 100), ("loading", 10, 100)]


def test_windows_are_told_as_they_are(run: warm_progress._Run, told: Told) -> None:
    for done in (0, 4, 6):
        run.windows(done, 6)
        run.tell(1, 2)  # from outside of a step
    assert told == [("inferring", done, 6) for done in (0, 4, 6)]


def test_a_step_tells_little_in_a_short_time(
    run: warm_progress._Run, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_progress, "_SECONDS", 3600.0)
    run.enter("loading", 0, 50)
    for done in range(1000):
        run.tell(done, 1000)
    run.enter("resampling", 0, 100)
    assert told == [("loading", 0, 100), ("resampling", 0, 100)], "but each new stage at once"


def test_many_threads_tell_at_once_and_none_waits(run: warm_progress._Run, told: Told) -> None:
    run.enter("resampling", 0, 100)
    begin = threading.Barrier(4)

    def work() -> None:
        begin.wait()
        for done in range(1001):
            run.tell(done, 1000)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == sorted(set(told), key=lambda each: each[1])
    with run._lock:
        run.tell(1, 1)  # would never return if it waited


A_RUN = """
import json, os, sys, types
import nibabel as nib, numpy as np
from pfms.programs import warm_progress

class SaveImage:
    def __call__(self, data):
        nib.save(nib.Nifti1Image(data, np.eye(4)), "out.nii.gz")

module = types.ModuleType("monai.transforms.io.array")  # of a MONAI that has nothing else
module.SaveImage = SaveImage
sys.modules[module.__name__] = module
warm_progress.watch()
warm_progress._SECONDS = 0
told = []
data = np.random.default_rng(7).integers(0, 9, (160, 160, 120, 2)).astype(np.float32)
SaveImage()(data)
warm_progress.tell(1, 2)
in_parent = len(told)
warm_progress.begin(lambda *each: told.append(each))
if not (pid := os.fork()):
    SaveImage()(data)
    os._exit(len(told))
in_fork = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
SaveImage()(data)
same = bool((np.asanyarray(nib.load("out.nii.gz").dataobj) == data).all())
print(json.dumps([in_parent, in_fork, same, told]))
"""


def test_what_there_is_of_the_libraries_is_watched_in_the_run_alone(tmp_path: Path) -> None:
    line = [sys.executable, "-W", "ignore", "-c", A_RUN]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(line, cwd=tmp_path, env=path, capture_output=True, text=True, check=True)
    in_parent, in_fork, same, told = json.loads(said.stdout)
    assert (in_parent, in_fork, same) == (0, 0, True)
    assert {(stage, total) for stage, _, total in told} == {("writing", 100)}
    percents = [percent for _, percent, _ in told]
    assert percents == sorted(set(percents))
    assert (percents[0], percents[-1]) == (25, 85)
    assert len(percents) > 4, "24 MB are packed in pieces"


# --- how much of the whole run that is ----------------------------------------------------------


def of_a_run() -> Iterator[Progress]:
    for stage in STAGES:
        yield Progress(stage)
        yield from (Progress(stage, done, 8) for done in range(9))


@pytest.mark.parametrize(
    "shares",
    [
        DEFAULT_SHARES,
        Shares({}),
        Shares({"inferring": 3.0}),
        Shares({"preparing": 9, "writing": 1}),
    ],
)
def test_the_fraction_of_a_run_never_falls(shares: Shares) -> None:
    fractions = [shares.fraction(progress) for progress in of_a_run()]
    assert all(0 <= one <= other <= 1 for one, other in pairwise(fractions))


def test_the_fraction_follows_the_last_run_of_the_model() -> None:
    estimates = Estimates()
    assert estimates.shares("a") is DEFAULT_SHARES
    seconds = {"preparing": 5.0, "loading": 1.0, "inferring": 6.0, "writing": 1.0, "checking": 2.0}
    estimates.remember("a", 15.0, seconds)
    estimates.remember("a", 10.0)
    found = estimates.shares("a")
    assert found.fraction(Progress("inferring")) == 0.1
    assert found.fraction(Progress("inferring", 4, 8)) == 0.4
    assert found.fraction(Progress("resampling", 50, 100)) == 0.7
    assert found.fraction(Progress("checking", 100, 100)) == 1.0
    assert estimates.shares("b") is DEFAULT_SHARES


# --- the bar -------------------------------------------------------------------------------------


def drawn(bar: Bar, update: Update) -> tuple[float | None, float, str]:
    """What the bar shows after an update: its length, how much of it is full, the text beside."""
    bar(update)
    (task,) = bar._progress.tasks
    return task.total, task.completed, f"{task.description}: {task.fields['note']}"


def test_one_bar_moves_over_the_whole_run() -> None:
    bar = Bar()
    assert drawn(bar, Update("checking", 100, 100))[:2] == (100, 100)
    waiting = Update("waiting", job="1", place=2, fraction=0.0, expected=20.0)
    assert drawn(bar, waiting)[:2] == (None, 0), "it pulses"
    for n, stage in enumerate(STAGES):
        update = Update(stage, 4, 8, "1", fraction=n / 5, elapsed=2.0)
        total, completed, text = drawn(bar, update)
        assert (total, completed) == (1.0, n / 5)
        assert f"{20 * n}%" in text
        assert ("4 of 8 windows" in text) == (stage == "inferring")
    assert text.startswith("checking the result: 80%, ")
    fetched = drawn(bar, Update("downloading", 10_000, 40_000, "1"))
    assert fetched == (40_000, 10_000, "fetching the result: 10 kB of 40 kB")


def test_each_stage_has_words_of_its_own() -> None:
    said = [words(Update(stage, job="1")) for stage in STAGES]
    assert said[2:] == ["resampling", "writing", "checking the result"]
    assert words(Update("checking")) == "the server is checking it"
    assert len(set(said)) == len(STAGES)


def test_the_bar_pulses_for_the_stage_of_an_older_server() -> None:
    bar = Bar()
    assert drawn(bar, Update("inferring", 4, 8, "1"))[:2] == (8, 4)
    assert drawn(bar, Update("saving", job="1")) == (None, 0, "saving: ")


# --- through a server ----------------------------------------------------------------------------


def progress_of(server: Server, job_id: str) -> list[dict[str, Any]]:
    """What the job's events say about its progress."""
    with server.http.stream("GET", f"/jobs/{job_id}/events", timeout=120) as answer:
        lines = list(answer.iter_lines())
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    return [each for each in data if "stage" in each]


def test_what_an_earlier_release_recorded_is_still_told(start_server: StartServer) -> None:
    server = start_server()
    job_id = server.submit()
    server.ended(job_id)
    server.stop()
    old = json.dumps({"id": job_id, "state": "running", "stage": "saving", "done": None})
    with closing(sqlite3.connect(server.workspace / "pfms.db")) as table, table:
        table.execute(
            "UPDATE events SET data = ? WHERE json_extract(data, '$.stage') = 'checking'", (old,)
        )
    server = start_server()
    assert [each["stage"] for each in progress_of(server, job_id)][-1] == "saving"
    assert server.job(job_id)["progress"]["stage"] == "ended"


@pytest.mark.real
@pytest.mark.timeout(300)
@pytest.mark.parametrize("executor", ["warm", pytest.param("fresh", marks=pytest.mark.every)])
def test_a_real_run_goes_through_every_stage(tmp_path: Path, executor: str) -> None:
    volume = make_phantom(7, (48, 40, 32), (5.0, 5.0, 6.0)).volume
    server = start_real(tmp_path / "workspace", executor)
    try:
        job_id = server.submit(volume.to_bytes())
        told = progress_of(server, job_id)
        assert server.ended(job_id)["state"] == "succeeded"
    finally:
        server.stop()
    stages = [each["stage"] for each in told]
    assert stages == sorted(stages, key=list(STAGES).index)
    missed = {"resampling"} if executor == "fresh" else set()  # it may be over before it is read
    assert set(stages) | missed == set(STAGES)
    assert all(each["done"] <= each["total"] for each in told if each["done"] is not None)
    fractions = [each["fraction"] for each in told]
    assert fractions == sorted(fractions)
