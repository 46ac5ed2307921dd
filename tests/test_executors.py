"""The contract of all executors, tested with real processes."""

import asyncio
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import nibabel as nib
import numpy as np
import psutil
import pytest

from pfms.executors.base import Executor
from pfms.executors.cluster import RayExecutor
from pfms.executors.fresh import FreshExecutor
from pfms.executors.warm import WarmExecutor
from pfms.plugin import PLUGIN
from pfms.plugin.command import PluginCommand, resolve_command
from pfms.plugin.types import STAGES, OnProgress, PluginExit, PluginRun, Progress
from tests.cluster import a_cluster, told
from tests.conftest import until

PLUGINS = Path(__file__).parent / "plugins"
GRACE = 0.3
WITHIN = 5.0  # seconds for a run to be gone once it is ended, whatever it does

EXECUTORS: dict[str, Callable[[PluginCommand], Executor]] = {
    "fresh": lambda command: FreshExecutor(workspace_mark="of-this-test"),
    "warm": lambda command: WarmExecutor(
        command, PLUGIN.environment(), workspace_mark="of-this-test"
    ),
    "kept": lambda command: WarmExecutor(
        command, PLUGIN.environment(), workspace_mark="of-this-test", runs_per_process=3
    ),
}
RAY = "ray"

pytestmark = pytest.mark.anyio


@dataclass
class Bench:
    """A job's folder, and an executor to run fake plugins in it."""

    make: Callable[[PluginCommand], Executor]
    root: Path

    async def there(self) -> Path:
        """Where a run is: on a node, it is not in the job's folder."""
        await until(self.processes)
        return Path(self.processes()[0].cwd())

    @property
    def log(self) -> Path:
        return self.root / "plugin.log"

    @property
    def onehot(self) -> Path:
        return self.root / PLUGIN.outputs["onehot"]

    async def run(
        self,
        name: str,
        time_limit: float = 60,
        on_progress: OnProgress | None = None,
        environment: dict[str, str] | None = None,
    ) -> PluginExit:
        command = resolve_command(str(PLUGINS / f"{name}.py"))
        executor = self.make(command)
        await executor.start()
        try:
            run = PluginRun(
                job=self.root.name,
                root=self.root,
                argv=PLUGIN.argv(command.argv, "cpu"),
                environment=PLUGIN.environment() if environment is None else environment,
                log=self.log,
                time_limit=time_limit,
                grace=GRACE,
                slot="cpu/0",
                kind="of-this-test",
            )
            return await executor.run(run, on_progress)
        finally:
            await executor.close()

    async def until_log_says(self, words: str) -> None:
        await until(lambda: self.log.exists() and words in self.log.read_text())

    def processes(self) -> list[psutil.Process]:
        """All processes in the job's folder, here or on a node, whatever their parents are."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).name == self.root.name:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with a_cluster() as one:
        yield one


# On a cluster, each test takes several seconds; tests/test_cluster.py has some for CI.
@pytest.fixture(params=[*EXECUTORS, pytest.param(RAY, marks=pytest.mark.every)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    root = tmp_path / f"2026-01-02-03-04-05-{uuid.uuid4()}"
    (root / "input" / "imagesTs").mkdir(parents=True)
    (root / PLUGIN.weights).write_bytes(b"weights")
    voxels = np.full((6, 5, 24), -50, np.int16)
    voxels[2:4, 1:3, 10:14] = 60
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), root / PLUGIN.volume)
    if request.param == RAY:
        one = request.getfixturevalue("cluster")
        return Bench(lambda command: RayExecutor(command, told(one, command.argv[-1])), root)
    return Bench(EXECUTORS[request.param], root)


async def test_a_run_that_ends_well_leaves_its_result_and_code_0(bench: Bench) -> None:
    end = await bench.run("ok")
    assert (end.code, end.signal, end.ended_by) == (0, None, "itself"), bench.log.read_text()
    assert nib.load(bench.onehot).shape == (6, 5, 24, 2)


async def test_the_empty_mask_of_the_quick_plugin_is_valid(bench: Bench) -> None:
    end = await bench.run("empty")
    assert end.code == 0, bench.log.read_text()
    written, volume = nib.load(bench.onehot), nib.load(bench.root / PLUGIN.volume)
    np.testing.assert_array_equal(written.affine, volume.affine)
    onehot = np.asanyarray(written.dataobj)
    assert (onehot.shape, onehot.dtype) == ((6, 5, 24, 2), np.float32)
    assert (onehot[..., 0] == 1).all()
    assert (onehot[..., 1] == 0).all()


async def test_the_plugin_gets_its_arguments_folder_environment_and_no_input(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFMS_PORT", "1")  # the server's settings are not for the plugin
    monkeypatch.setenv("OF_THE_SERVER", "kept")
    end = await bench.run("reports", environment={"OF_THE_RUN": "set", "MPLBACKEND": "Agg"})
    assert end.code == 0, bench.log.read_text()
    report = json.loads((bench.root / "output" / "report.json").read_text())
    assert report["arguments"] == list(PLUGIN.argv((), "cpu"))
    assert Path(report["cwd"]).name == bench.root.name
    assert report["leads_session"]
    assert report["stdin"] == ""
    assert "PFMS_PORT" not in report["environment"]
    expected = {"OF_THE_SERVER": "kept", "OF_THE_RUN": "set", "MPLBACKEND": "Agg"}
    if Path(report["cwd"]) != bench.root:  # a node has an environment of its own
        del expected["OF_THE_SERVER"]
    assert expected.items() <= report["environment"].items()


async def test_stdout_and_stderr_are_appended_to_the_log(bench: Bench) -> None:
    bench.log.write_text("from before\n")
    await bench.run("reports")
    assert bench.log.read_text() == "from before\nsaid on stdout\nsaid on stderr\n"


async def test_the_group_and_nobody_else_can_write_what_the_plugin_wrote(bench: Bench) -> None:
    await bench.run("ok")
    assert bench.onehot.stat().st_mode & 0o777 == 0o660
    assert bench.onehot.parent.stat().st_mode & 0o777 == 0o770


async def test_a_failure_of_the_plugin_is_reported_with_its_exit_code(bench: Bench) -> None:
    end = await bench.run("exit3")
    assert (end.code, end.signal, end.ended_by) == (3, None, "itself")
    assert "no spleen today" in bench.log.read_text()


async def test_a_python_error_is_exit_code_1_and_appears_in_the_log(bench: Bench) -> None:
    end = await bench.run("raises")
    assert end.code == 1
    assert "ValueError: cannot read" in bench.log.read_text()


async def test_a_run_that_the_system_kills_ends_with_the_signal(bench: Bench) -> None:
    end = await bench.run("out_of_memory")
    assert (end.code, end.signal, end.ended_by) == (None, 9, "itself")


async def test_the_most_memory_that_a_run_held_is_told(bench: Bench) -> None:
    peaks = []
    for size in (1, 300):
        (bench.root / PLUGIN.weights).write_text(str(size))
        end = await bench.run("holds_memory")
        assert end.code == 0, bench.log.read_text()
        assert end.peak_memory
        peaks.append(end.peak_memory >> 20)
        shutil.rmtree(bench.root / "output")
    assert 20 < peaks[0] < 200, "it has imported nibabel"
    assert 300 < peaks[1] < 500


async def test_the_most_memory_of_a_run_that_is_killed_is_told(bench: Bench) -> None:
    end = await bench.run("out_of_memory")
    assert end.peak_memory
    assert 1 < end.peak_memory >> 20 < 200


async def test_the_most_memory_of_a_run_is_that_of_its_largest_process(bench: Bench) -> None:
    (bench.root / PLUGIN.weights).write_text("300")
    end = await bench.run("holds_memory_in_a_child")
    assert end.peak_memory
    assert 300 < end.peak_memory >> 20 < 500


async def test_a_run_that_is_stopped_from_outside_may_be_tried_again(bench: Bench) -> None:
    end = await bench.run("stopped_from_outside")
    assert (end.signal, end.ended_by) == (15, "executor")
    assert end.message


async def test_a_flood_on_stderr_does_not_stop_the_run(bench: Bench) -> None:
    end = await bench.run("floods_stderr")
    assert end.code == 0
    assert 4 << 20 < bench.log.stat().st_size <= 16 << 20
    assert bench.onehot.exists()


async def test_the_time_limit_ends_a_run_that_hangs(bench: Bench) -> None:
    end = await bench.run("hangs", time_limit=0.5)
    assert (end.code, end.signal, end.ended_by) == (None, 15, "time-limit")
    assert end.seconds >= 0.5
    assert bench.processes() == []


async def test_the_time_limit_kills_a_plugin_that_ignores_term_and_its_children(
    bench: Bench,
) -> None:
    end = await bench.run("ignores_term", time_limit=2.0)
    assert "ignoring" in bench.log.read_text()
    assert (end.code, end.signal, end.ended_by) == (None, 9, "time-limit")
    assert end.seconds < 2.0 + WITHIN
    assert bench.processes() == []


@pytest.mark.parametrize(
    ("name", "says"),
    [("hangs", "hanging"), ("ignores_term", "ignoring"), ("forks_like_mad", "forking")],
)
async def test_a_cancel_leaves_no_process(bench: Bench, name: str, says: str) -> None:
    task = asyncio.create_task(bench.run(name))
    await bench.until_log_says(says)
    assert bench.processes() != []
    cancelled = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.processes() == []
    assert time.monotonic() - cancelled < WITHIN


async def test_a_second_cancel_does_not_leave_processes_behind(bench: Bench) -> None:
    task = asyncio.create_task(bench.run("ignores_term"))
    await bench.until_log_says("ignoring")
    for _ in range(3):
        task.cancel()
        await anyio.sleep(GRACE / 10)
    assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.processes() == []


async def test_the_loop_goes_on_while_a_run_is_being_ended(bench: Bench) -> None:
    task = asyncio.create_task(bench.run("ignores_term"))
    await bench.until_log_says("ignoring")
    task.cancel()
    turns = 0
    while not task.done():
        await anyio.sleep(GRACE / 100)
        turns += 1
    assert turns > 10
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_children_that_a_run_leaves_behind_are_ended(bench: Bench) -> None:
    end = await bench.run("leaves_children")
    assert (end.code, end.ended_by) == (0, "itself")
    assert "left three" in bench.log.read_text()
    assert bench.processes() == []


async def test_parallel_runs_do_not_end_each_other(bench: Bench, tmp_path: Path) -> None:
    other = Bench(bench.make, tmp_path / str(uuid.uuid4()))
    (other.root / "input").mkdir(parents=True)
    staying = asyncio.create_task(other.run("hangs"))
    await other.until_log_says("hanging")
    await bench.run("leaves_children")
    assert not staying.done()
    assert other.processes() != []
    staying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await staying
    assert other.processes() == []


async def test_stages_are_reported_as_the_run_reaches_them(bench: Bench) -> None:
    told: list[Progress] = []

    def reached(stage: str) -> bool:
        return bool(told) and told[-1].stage == stage

    task = asyncio.create_task(bench.run("staged", on_progress=told.append))
    for stage, go_on in (("loading", "infer"), ("inferring", "save"), ("resampling", "end")):
        await until(partial(reached, stage))
        ((await bench.there()) / go_on).touch()
    assert (await task).code == 0, bench.log.read_text()
    *before, checking = STAGES
    assert [progress.stage for progress in told] == before
    assert checking == "checking", "which begins when the run has ended"


@pytest.mark.every
async def test_a_node_shares_its_own_cores_among_its_runs(cluster: Any, tmp_path: Path) -> None:
    root = tmp_path / str(uuid.uuid4())
    (root / "input").mkdir(parents=True)
    bench = Bench(
        lambda command: RayExecutor(command, told(cluster, command.argv[-1], jobs_per_device=2)),
        root,
    )
    await bench.run("reports", environment={"OMP_NUM_THREADS": "77"})  # the server's own share
    report = json.loads((root / "output" / "report.json").read_text())
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert report["environment"]["OMP_NUM_THREADS"] == str(share)
