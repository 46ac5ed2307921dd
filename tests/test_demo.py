"""The demo: to its end by the real plugin, and its ends that are not good."""

import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from pfms.local.demo import DemoResult, dice_of, what_next
from tests.command import finish, pfms, running
from tests.conftest import PLUGINS, eventually

JOB = {"folder": "jobs/x", "id": "x"}


def of_the_demo(out: Path) -> list[str]:
    """The command lines of the servers that a demo in `out` has started."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(out) in f"{line} {process.info['cwd']}" and " serve " in line:
            found.append(line)
    return found


def labels(path: Path, *spleen: int) -> None:
    voxels = np.zeros((4, 4, 4), np.uint8)
    voxels.ravel()[list(spleen)] = 1
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


@pytest.mark.parametrize(
    ("found", "truth", "dice"),
    [((0, 1), (0, 1), 1.0), ((0,), (1,), 0.0), ((0, 1), (1, 2, 3, 4), 1 / 3), ((), (), 1.0)],
)
def test_the_dice_is_that_of_both_masks(
    tmp_path: Path, found: tuple[int, ...], truth: tuple[int, ...], dice: float
) -> None:
    labels(tmp_path / "segmentation.nii.gz", *found)
    labels(tmp_path / "truth.nii.gz", *truth)
    assert dice_of(tmp_path) == dice


def test_its_end_says_how_to_go_on() -> None:
    text = what_next(
        Path("demo"), DemoResult(JOB, 0.95, Path("demo/workspace/jobs/x")), ".venv/bin/pfms"
    )
    assert "demo/workspace/jobs/x/command.sh" in text
    assert ".venv/bin/pfms infer CT.nii.gz --model mine" in text
    assert "curl --fail-with-body -F file=@CT.nii.gz" in text
    assert "phantoms, not patients" in text


def test_without_the_examples_it_says_where_they_are(tmp_path: Path) -> None:
    done = pfms("demo", "--examples", tmp_path, cwd=tmp_path, code=1)
    assert "demo_model.pth" in done.stderr
    assert "--examples" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    settings = {"plugin_command": "no-such-plugin"}
    done = pfms("demo", "--out", "d", cwd=tmp_path, code=1, **settings)
    assert "no-such-plugin" in done.stderr
    assert "pfms doctor" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.real
def test_a_plugin_that_fails_ends_the_demo_and_its_server(tmp_path: Path) -> None:
    settings = {"plugin_command": str(PLUGINS / "exit3.py")}
    done = pfms("demo", "--out", "d", cwd=tmp_path, code=1, **settings)
    assert "exit code 3" in done.stderr
    assert "server.log" in done.stderr
    assert of_the_demo(tmp_path) == []


def test_a_demo_that_is_killed_ends_its_server(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with running("demo", "--out", out, cwd=tmp_path) as process:
        assert process.stdout
        while "http://" not in process.stdout.readline():
            pass
        assert of_the_demo(out) != []
        process.kill()
        process.wait(30)
        eventually(lambda: not of_the_demo(out))


@pytest.mark.real
@pytest.mark.timeout(300)
def test_it_segments_a_phantom_well_repeats_it_and_stops_on_a_signal(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    # Of a nearly full disk, which the demo's own server does not mind.
    first = pfms("demo", "--out", out, cwd=tmp_path, min_free_bytes=str(1 << 60)).stdout
    names = {"ct.nii.gz", "truth.nii.gz", "segmentation.nii.gz", "segmentation.png"}
    assert names < {path.name for path in out.iterdir()}
    assert (out / "segmentation.png").read_bytes().startswith(b"\x89PNG")
    assert dice_of(out) >= 0.9
    assert f"Dice {dice_of(out):.3f}" in first
    assert of_the_demo(tmp_path) == []
    (job,) = (out / "workspace" / "jobs").iterdir()
    assert f"{job}/command.sh" in first

    with running("demo", "--out", out, cwd=tmp_path) as process:
        assert process.stdout
        lines: list[str] = []
        while not (lines and lines[-1].startswith("4. ")):
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, err = finish(process, 130)
    assert any("from last time" in line for line in lines)
    assert "the server is stopped" in err
    assert of_the_demo(tmp_path) == []
