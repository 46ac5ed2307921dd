"""The bench of a GPU, measured on the CPU: all of it but CUDA itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu, on_device
from bench.chart import draw
from bench.figures import Skipped, Task
from bench.machine import machine
from bench.volumes import content
from examples.phantoms import make_phantom
from pfms.executors.devices import available
from tests.conftest import ROOT


@pytest.mark.skipif(available() != ("cpu",), reason="there is a GPU")
def test_without_a_gpu_it_is_skipped_with_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(Skipped) as skipped:
        next(gpu.measure(Task(tmp_path)))
    assert "torch" in str(skipped.value)
    assert "\n" not in str(skipped.value)


@pytest.mark.every  # more than a minute, of a tool
@pytest.mark.real
@pytest.mark.timeout(600)
def test_all_that_it_measures_on_a_gpu_it_can_measure_on_the_cpu(tmp_path: Path) -> None:
    volume = content(make_phantom(7, (48, 40, 32), (5.0, 5.0, 6.0)).volume)
    task = Task(tmp_path / "work", quick=True)
    figures = list(gpu.measure_on("cpu", task, {"small": volume}, slots=(2,)))
    found = {figure.name: figure.value for figure in figures}

    assert found[f"small, {gpu.FIRST}, {on_device.DEVICE}"] > 0
    for which in (gpu.FIRST, gpu.LATER):
        timed = {stage for stage in on_device.STAGES if f"small, {which}, {stage}" in found}
        assert timed >= {"weights", "network", "network: forward", "write"}
        assert on_device.TO_DEVICE not in timed, "nothing has to move"
    for way in ("bare", "fork", "kept"):
        assert found[f"small, {way}"] > 0
    assert found["small, different label maps"] == 1
    assert found["small, kept, runs in the process of another"] >= 1
    for way in ("fork", "kept"):
        assert found[f"{way}, 2 slots"] > 0
        assert found[f"{way}, 2 slots, memory of each"] > 100
    assert found["kept, 2 slots, memory of each while it waits"] > 0

    result = {"machine": machine(), "figures": [figure.to_dict() for figure in figures]}
    (tmp_path / "gpu.json").write_text(json.dumps(result))
    draw(tmp_path)
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


TRANSFERS = """
import torch
from bench.on_device import TO_DEVICE, time_transfers
from bench.stage_timer import REST, Stopwatch
ticks = iter(range(100))
watch = Stopwatch(lambda: next(ticks))
time_transfers(watch)
tensor = torch.zeros(3)
network, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
def moves(): tensor.to("meta"); other.to("meta")  # a device that is always there
def stays(): tensor.to(torch.float64); tensor.to("cpu"); tensor.cpu(); network.to("cpu")
for work, moved in ((moves, 3), (stays, 0)):
    watch.start_anew()
    started = next(ticks)
    work()
    stages = watch.result(started, next(ticks))["stages"]
    assert stages.get(TO_DEVICE, {"seconds": 0})["seconds"] == moved, stages
    assert stages[REST]["seconds"] == moved + 1, stages
"""


@pytest.mark.real
def test_a_copy_to_another_device_is_a_stage_and_one_on_the_same_is_not() -> None:
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", TRANSFERS], env=path, check=True)
