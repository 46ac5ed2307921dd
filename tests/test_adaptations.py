"""The adaptations: named, documented, and without any effect on the voxels."""

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from isal import igzip_lib, isal_zlib

from examples.phantoms import make_phantom
from pfms.errors import StartError
from pfms.executors.base import Executor
from pfms.executors.fresh import FreshExecutor
from pfms.executors.warm import WarmExecutor
from pfms.plugin import PLUGIN
from pfms.plugin.adaptations import ADAPTATIONS, adaptations
from pfms.plugin.command import PluginCommand, resolve_command
from pfms.plugin.types import STAGES, PluginRun, Progress
from pfms.programs import warm_adaptations, warm_progress
from pfms.settings import load_settings
from tests.conftest import ROOT

NAMES = [step.name for step in ADAPTATIONS]
real = [pytest.mark.anyio, pytest.mark.real, pytest.mark.timeout(300)]


def test_each_adaptation_is_either_environment_or_a_step_of_the_warm_parent() -> None:
    steps = {step.name for step in ADAPTATIONS if not step.environment}
    assert steps == set(warm_adaptations.ADAPTATIONS)
    assert len(set(NAMES)) == len(NAMES)


def test_each_adaptation_is_documented() -> None:
    documented = (ROOT / "docs" / "adaptations.md").read_text()
    settings = (ROOT / "config.env").read_text()
    for name in NAMES:
        assert f"| `{name}` |" in documented
        assert name in settings


@pytest.mark.parametrize("name", NAMES)
def test_an_adaptation_can_be_left_out(name: str) -> None:
    left = {step.name for step in adaptations([name])}
    assert left == set(NAMES) - {name}
    step = next(step for step in ADAPTATIONS if step.name == name)
    assert step.environment.items() <= PLUGIN.environment().items()
    assert not step.environment.keys() & PLUGIN.environment(without=[name]).keys()


def test_the_setting_leaves_adaptations_out_and_refuses_unknown_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PFMS_ADAPTATIONS_OFF", "igzip, keep-memory")
    assert load_settings().adaptations_off == ("igzip", "keep-memory")
    monkeypatch.setenv("PFMS_ADAPTATIONS_OFF", "igzip, faster")
    with pytest.raises(StartError, match="no such adaptation: faster"):
        load_settings()


IGZIP = """
import gzip, sys
from pfms.programs import warm_adaptations
warm_adaptations.igzip()
for level in (1, 6, 9):
    with gzip.GzipFile(f"{level}.gz", "wb", compresslevel=level) as file:
        file.write(bytes(range(256)) * 4096)
assert gzip.decompress(open("by_zlib.gz", "rb").read()) == bytes(range(256)) * 4096
try:
    gzip.open("cut.gz").read()
except EOFError:
    print("cut")
"""


def test_gzip_still_has_every_level_and_its_own_errors(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "by_zlib.gz").write_bytes(gzip.compress(content))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(content)[:-100])
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", IGZIP]
    said = subprocess.run(line, cwd=tmp_path, env=path, capture_output=True, text=True, check=True)
    assert said.stdout == "cut\n"
    files = {level: (tmp_path / f"{level}.gz").read_bytes() for level in (1, 6, 9)}
    assert all(gzip.decompress(packed) == content for packed in files.values())
    raw = isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15)
    assert raw.compress(content) + raw.flush() in files[1], "level 1 uses ISA-L"
    assert igzip_lib.decompress(files[9], flag=igzip_lib.DECOMP_GZIP) == content


ARGMAX = """
import torch
from pfms.programs import warm_adaptations
own = torch.argmax
warm_adaptations.argmax_layout()
assert torch.argmax is not own
torch.manual_seed(0)
tensor = torch.randint(3, (2, 5, 4, 3)).float()  # with many equal values
tensor[0, 0] = torch.nan
for each in (tensor, tensor.permute(2, 0, 3, 1), tensor[1], tensor[0, 1, 2], tensor.double()):
    assert torch.equal(torch.argmax(each), own(each))
    for dim in range(-each.ndim, each.ndim):
        for keepdim in (False, True):
            assert torch.equal(torch.argmax(each, dim, keepdim), own(each, dim, keepdim))
            assert torch.equal(torch.argmax(each, dim=dim), own(each, dim=dim))
"""


@pytest.mark.real
def test_argmax_gives_the_same_in_the_other_layout() -> None:
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", ARGMAX], env=path, check=True)


# --- with the plugin itself ----------------------------------------------------------------------


def job(folder: Path, command: PluginCommand, **phantom: object) -> PluginRun:
    """The run of a small phantom, in a folder of its own."""
    (folder / "input" / "imagesTs").mkdir(parents=True)
    phantom = {"shape": (48, 40, 32), "spacing": (5.0, 5.0, 6.0), **phantom}
    volume = make_phantom(7, **phantom).volume  # type: ignore[arg-type]
    nib.save(volume, folder / PLUGIN.volume)
    (folder / PLUGIN.weights).write_bytes((ROOT / "examples" / "demo_model.pth").read_bytes())
    return PluginRun(
        job=f"{folder.parent.name}-{folder.name}",
        root=folder,
        argv=PLUGIN.argv(command.argv, "cpu", "logits"),
        environment=PLUGIN.environment(),
        log=folder / "plugin.log",
        time_limit=200,
        grace=1,
    )


async def outputs(executor: Executor, run: PluginRun) -> dict[str, bytes]:
    """Every volume that the plugin wrote, unpacked, and that it wrote a picture."""
    end = await executor.run(run)
    assert end.code == 0, run.log.read_text()
    written = {
        str(path.relative_to(run.root)): np.asanyarray(nib.load(path).dataobj).tobytes()
        for path in run.root.rglob("output/**/*.nii.gz")
    }
    assert {PLUGIN.outputs["onehot"], PLUGIN.outputs["logits"]} < written.keys()
    assert (run.root / "output" / "inference" / "infer-1.png").is_file()
    return written


FORMS = {
    "LPS": {"orientation": "LPS", "dtype": np.int16},
    "oblique": {"orientation": "PIR", "tilt_degrees": 12.0, "dtype": np.float32},
}


class TestWithThePlugin:
    pytestmark = real

    async def test_warm_and_fresh_give_identical_voxels_in_every_file(self, tmp_path: Path) -> None:
        command = resolve_command("spleenseg")
        warm = WarmExecutor(command, PLUGIN.environment())
        await warm.start()
        try:
            for name, form in FORMS.items():
                runs = [job(tmp_path / f"{name}-{way}", command, **form) for way in "fw"]
                by_fresh = await outputs(FreshExecutor(), runs[0])
                by_warm = await outputs(warm, runs[1])
                assert by_warm == by_fresh
        finally:
            await warm.close()

    @pytest.mark.every
    @pytest.mark.parametrize("without", [*NAMES, ",".join(NAMES)])
    async def test_without_an_adaptation_the_voxels_are_the_same(
        self, tmp_path: Path, without: str
    ) -> None:
        command = resolve_command("spleenseg")
        found: list[dict[str, bytes]] = []
        for names in ((), without.split(",")):
            environment = PLUGIN.environment(without=names)
            executor = WarmExecutor(command, environment, without=names)
            await executor.start()
            try:
                found.append(await outputs(executor, job(tmp_path / str(len(found)), command)))
            finally:
                await executor.close()
        assert found[0] == found[1]

    async def test_a_run_reports_its_stages_and_the_windows_done(self, tmp_path: Path) -> None:
        command = resolve_command("spleenseg")
        executor = WarmExecutor(command, PLUGIN.environment())
        await executor.start()
        told: list[Progress] = []
        try:
            run = job(tmp_path / "job", command, shape=(68, 52, 40))
            await executor.run(run, told.append)
        finally:
            await executor.close()
        of_stage = {stage: [p for p in told if p.stage == stage] for stage in STAGES[:-1]}
        assert told == [p for each in of_stage.values() for p in each], "never a stage backwards"
        for stage, each in of_stage.items():
            parts = [p.part for p in each]
            assert parts == sorted(parts)
            assert (len(set(parts)) > 1, max(parts) <= 1) == (True, True), stage
        for path, name, first, last in warm_progress._STEPS:
            assert {first, last} <= {p.done for p in told if p.stage == name}, path
        windows = [(p.done, p.total) for p in of_stage["inferring"] if p.done is not None]
        resampled = nib.load(run.root / PLUGIN.outputs["logits"]).shape
        total = math.prod(1 + max(0, math.ceil((size - 160) / 120)) for size in resampled)
        assert total > 1
        assert windows == [*((done, total) for done in range(0, total, 4)), (total, total)]

    async def test_everything_that_a_run_imports_is_already_imported_in_its_parent(
        self, tmp_path: Path
    ) -> None:
        report = await self.told_by(tmp_path, PLUGIN.environment())
        assert report["imported"] == []

    async def test_every_function_that_an_adaptation_replaces_is_replaced_in_a_run(
        self, tmp_path: Path
    ) -> None:
        report = await self.told_by(tmp_path, PLUGIN.environment())
        assert set(report["defined in"]) == {"warm_adaptations.py", "warm_volumes.py"}

    async def test_a_library_that_is_missing_is_logged_and_the_plugins_own_steps_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "numba.py").write_text("raise ImportError('there is no numba')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        report = await self.told_by(tmp_path, PLUGIN.environment())
        (warning,) = [r.getMessage() for r in caplog.records if "lacks" in r.getMessage()]
        for name in ("read-as-float32", "sample-by-rows", "one-hot-in-one-pass"):
            assert f"{name} (there is no numba)" in warning
        assert "array.py" in report["defined in"]

    async def test_the_parent_has_no_thread_and_a_run_has_the_threads_of_its_slot(
        self, tmp_path: Path
    ) -> None:
        # OpenBLAS has its own threads, which it handles itself when the process forks
        parent = {**PLUGIN.environment(), "OPENBLAS_NUM_THREADS": "1"}
        report = await self.told_by(tmp_path, parent, {**parent, "OMP_NUM_THREADS": "1"})
        assert report["threads of the parent"] == 1
        assert (report["torch"], report["torch in a thread"]) == (1, 1)

    REPORTS = """
import spleenseg.spleenseg as plugin
import json, os, sys, threading, torch
import monai.data.image_reader as reader, monai.transforms.io.array as files
import monai.transforms.post.array as post, monai.transforms.spatial.functional as spatial
import spleenseg.plotting.plotting as plotting
replaced = (
    torch.argmax, torch.utils.data.DataLoader.__init__, files.LoadImage.__init__,
    reader.NibabelReader._get_array_data, spatial.AffineTransform.forward,
    post.AsDiscrete.__call__, files.SaveImage.__call__, plotting.plot_infer,
)
before = set(sys.modules)
plugin.main()
threads = []
thread = threading.Thread(target=lambda: threads.append(torch.get_num_threads()))
thread.start()
thread.join()
with open("report.json", "w") as file:
    json.dump({
        "imported": sorted(set(sys.modules) - before),
        "threads of the parent": len(os.listdir(f"/proc/{os.getppid()}/task")),
        "defined in": [os.path.basename(each.__code__.co_filename) for each in replaced],
        "torch": torch.get_num_threads(),
        "torch in a thread": threads[0],
    }, file)
"""

    async def told_by(
        self, folder: Path, parent: dict[str, str], of_the_run: dict[str, str] | None = None
    ) -> dict[str, Any]:
        script = folder / "reports.py"
        script.write_text(self.REPORTS)
        command = resolve_command(str(script))
        executor = WarmExecutor(command, parent)
        await executor.start()
        run = job(folder / "job", command)
        try:
            run = PluginRun(**{**run.__dict__, "environment": of_the_run or parent})
            await outputs(executor, run)
        finally:
            await executor.close()
        report: dict[str, Any] = json.loads((run.root / "report.json").read_text())
        return report

    def test_nothing_that_the_parent_imports_asks_for_cuda(self) -> None:
        line = [sys.executable, "-W", "ignore", "-c", ASKS_FOR_CUDA]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
        said = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        assert said.stdout == "[]\n"


ASKS_FOR_CUDA = """
import torch
asked = []
def spied(name, ask):
    return lambda *args, **named: (asked.append(name), ask(*args, **named))[1]
for name in ("is_available", "device_count", "init", "current_device", "get_device_properties"):
    setattr(torch.cuda, name, spied(name, getattr(torch.cuda, name)))
from pfms.programs import warm_adaptations, warm_plugin
names = list(warm_adaptations.ADAPTATIONS)
warm_plugin.load({"entry_point": "spleenseg.spleenseg:main", "adaptations": names})
print(asked)
"""
