"""Which devices there are and which are chosen, without torch and on any machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pfms.errors import StartError
from pfms.executors import devices
from tests.conftest import ROOT

TWO_GPUS = ("cuda:0", "cuda:1", "cpu")


@pytest.mark.parametrize(
    ("setting", "there", "chosen"),
    [
        ("auto", TWO_GPUS, ("cuda:0", "cuda:1")),
        ("auto", ("cpu",), ("cpu",)),
        (" auto ", ("cpu",), ("cpu",)),
        ("cpu", TWO_GPUS, ("cpu",)),
        ("cuda", TWO_GPUS, ("cuda:0",)),
        ("cuda:1", TWO_GPUS, ("cuda:1",)),
        ("cuda:1,cuda:0", TWO_GPUS, ("cuda:1", "cuda:0")),
        ("cuda:0, cuda:1 ,cpu", TWO_GPUS, TWO_GPUS),
        ("cuda:0,cuda,cuda:0", TWO_GPUS, ("cuda:0",)),
        ("auto", ("a/cuda:0", "b/cuda:0", "a/cpu", "b/cpu"), ("a/cuda:0", "b/cuda:0")),
        ("auto", ("a/cpu", "b/cpu"), ("a/cpu", "b/cpu")),
        ("cuda", ("a/cuda:0", "a/cuda:1", "b/cuda:0"), ("a/cuda:0", "b/cuda:0")),
        ("b/cuda:0,cpu", ("a/cuda:0", "b/cuda:0", "a/cpu"), ("b/cuda:0", "a/cpu")),
        ("auto", (), ()),
        ("cuda:0", (), ()),
    ],
)
def test_the_setting_chooses_among_what_is_there(
    setting: str, there: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    assert devices.choose(setting, there) == chosen


@pytest.mark.parametrize(
    ("device", "said"),
    [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("a/cpu", "cpu"), ("a/cuda:1", "cuda:0")],
)
def test_a_run_on_a_node_is_told_of_its_own_gpu_as_the_only_one(device: str, said: str) -> None:
    assert devices.as_the_plugin_says(device) == said


@pytest.mark.parametrize(
    "setting", ["cuda:2", "cuda:01", "gpu", "", ",", "cpu,", "auto,cpu", "cuda:-1", "x" * 1000]
)
def test_an_unavailable_device_is_refused_with_a_list_of_the_available_ones(setting: str) -> None:
    with pytest.raises(StartError) as caught:
        devices.choose(setting, TWO_GPUS)

    assert "cuda:0, cuda:1, cpu" in caught.value.detail
    assert len(caught.value.detail) < 200
    assert "PFMS_DEVICES" in caught.value.remedy


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        (None, 4),
        ("0,1,2,3", 4),
        ("2", 1),
        ("3,0", 2),
        ("0, 1", 2),
        ("", 0),
        ("-1", 0),
        ("0,-1,2", 1),
        ("0,9,2", 1),
        ("GPU-5cf7e2b0,GPU-0123abcd", 2),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(setting: str | None, seen: int) -> None:
    assert devices.visible(4, setting) == seen


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("cuda: Optional[str] = '12.6'\n", "12.6"),
        ('__version__ = "2.13.0"\ncuda = "13.0"\nhip = None\n', "13.0"),
        ("cuda: Optional[str] = None\n", None),
        ("# cuda = '1.0'\n", None),
    ],
)
def test_torchs_build_is_read_without_importing_it(
    tmp_path: Path, text: str, version: str | None
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "torch" / "version.py").write_text(text)
    # In a fresh interpreter: other tests may have imported the real torch into this one.
    program = (
        "import sys; from pfms.executors import devices; "
        "print(devices.torch_cuda_version(), 'torch' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert said == f"{version} False\n"


def test_there_is_always_a_cpu_and_gpus_only_if_torch_can_use_them() -> None:
    there = devices.available()

    assert there[-1] == "cpu"
    assert list(there[:-1]) == [f"cuda:{i}" for i in range(len(there) - 1)]
    if devices.torch_cuda_version() is None:
        assert there == ("cpu",)


@pytest.mark.parametrize(
    ("built_for", "gpus", "driver", "there"),
    [
        ("12.6", 2, 12, TWO_GPUS),
        ("12.6", 2, 13, TWO_GPUS),
        ("13.0", 2, 12, ("cpu",)),
        (None, 2, 12, ("cpu",)),
        ("12.6", 0, 0, ("cpu",)),
    ],
)
def test_a_gpu_counts_only_if_both_driver_and_torch_support_it(
    monkeypatch: pytest.MonkeyPatch,
    built_for: str | None,
    gpus: int,
    driver: int,
    there: tuple[str, ...],
) -> None:
    monkeypatch.setattr(devices, "torch_cuda_version", lambda: built_for)
    monkeypatch.setattr(devices, "driver_gpus", lambda: (gpus, driver))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    assert devices.available() == there


def test_hidden_gpus_are_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "torch_cuda_version", lambda: "12.6")
    monkeypatch.setattr(devices, "driver_gpus", lambda: (4, 12))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")

    assert devices.available() == TWO_GPUS
