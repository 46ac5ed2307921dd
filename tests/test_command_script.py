"""`command.sh`, really run, by each available shell."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pfms.plugin import PLUGIN
from pfms.plugin.types import HostFacts

PLUGINS = Path(__file__).parent / "plugins"
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]
RESULT = "inference/input/input_seg.nii.gz"
AWKWARD = 'it\'s "a" $HOME `id` \\ *'


def install(executable: Path, fake: str) -> Path:
    """An executable that runs a fake plugin."""
    executable.parent.mkdir(parents=True, exist_ok=True)
    executable.write_text(
        f"#!{sys.executable}\n"
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(PLUGINS)!r})\n"
        f"runpy.run_path({str(PLUGINS / fake)!r}, run_name='__main__')\n"
    )
    executable.chmod(0o755)
    return executable


def write_job(folder: Path, *command: str, environment: dict[str, str] | None = None) -> Path:
    """A job's folder, run once; its `command.sh`."""
    (folder / "input" / "imagesTs").mkdir(parents=True)
    voxels = np.random.default_rng(3).integers(-100, 100, (6, 5, 24)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), folder / PLUGIN.volume)
    (folder / PLUGIN.weights).write_bytes(b"weights")
    argv = PLUGIN.argv(command, "cpu")
    environment = PLUGIN.environment() if environment is None else environment
    script = folder / "command.sh"
    script.write_text(PLUGIN.command_script(argv, environment))
    script.chmod(0o775)
    subprocess.run(argv, cwd=folder, check=True, env={**os.environ, **environment})
    return script


def call(*argv: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def onehot(path: Path) -> bytes:
    return bytes(np.asanyarray(nib.load(path).dataobj).tobytes())


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "else where"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("command", [["/opt/spleenseg"], ["/opt/python", "/opt/my plugin.py"]])
def test_the_script_is_good_shell(tmp_path: Path, shell: str, command: list[str]) -> None:
    argv = PLUGIN.argv(command, "cuda:0", "logits")
    script = tmp_path / "command.sh"
    script.write_text(PLUGIN.command_script(argv, {"AWKWARD": AWKWARD}))
    check = [shell, "sh", "-n"] if shell == "busybox" else [shell, "-n"]
    done = call(*check, script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    if shutil.which("shellcheck"):
        assert call("shellcheck", "--exclude=SC2016", script, cwd=tmp_path).stdout == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_a_copied_folder_whose_name_has_spaces_gives_the_same_voxels_from_anywhere(
    tmp_path: Path, elsewhere: Path, shell: str
) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    write_job(tmp_path / "job", str(executable))
    copy = tmp_path / "a copy of it's"
    shutil.copytree(tmp_path / "job", copy)
    start = [shell, "sh"] if shell == "busybox" else [shell]
    done = call(*start, "../a copy of it's/command.sh", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"The segmentation will be in {copy}/rerun/{RESULT}\n")
    assert onehot(copy / "rerun" / RESULT) == onehot(copy / PLUGIN.outputs["onehot"])
    assert list(elsewhere.iterdir()) == []


def test_the_script_works_by_itself_and_through_links(tmp_path: Path, elsewhere: Path) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    script = write_job(tmp_path / "job", str(executable))
    (tmp_path / "first").symlink_to("job/command.sh")
    (elsewhere / "second").symlink_to("../first")
    done = call("./second", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert (script.parent / "rerun" / RESULT).exists()


def test_it_is_found_on_path_too(tmp_path: Path, elsewhere: Path) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    script = write_job(tmp_path / "job", str(executable))
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    done = call("/bin/sh", "-c", "command.sh", cwd=elsewhere, PATH=path, CDPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (script.parent / "rerun" / RESULT).exists()


def test_the_outputdir_is_relative_to_the_caller_or_absolute(
    tmp_path: Path, elsewhere: Path
) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    script = write_job(tmp_path / "job", str(executable))
    done = call(script, "new/out put", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert f"{elsewhere}/new/out put/{RESULT}" in done.stdout
    assert (elsewhere / "new" / "out put" / RESULT).exists()

    done = call(script, tmp_path / "absolute", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "absolute" / RESULT).exists()
    assert not (script.parent / "rerun").exists()


def test_an_empty_outputdir_is_accepted(tmp_path: Path, elsewhere: Path) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    script = write_job(tmp_path / "job", str(executable))
    assert call(script, ".", cwd=elsewhere).returncode == 0
    assert (elsewhere / RESULT).exists()


@pytest.mark.parametrize("name", [[], ["rerun"], ["output"], ["input"], ["."]])
def test_an_outputdir_that_is_not_empty_is_refused_and_left_alone(
    tmp_path: Path, name: list[str]
) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    script = write_job(tmp_path / "job", str(executable))
    (script.parent / "rerun").mkdir()
    (script.parent / "rerun" / ".hidden").touch()
    before = sorted(script.parent.rglob("*"))
    done = call(script, *name, cwd=script.parent)
    assert done.returncode == 2
    assert "is not empty: name another OUTPUTDIR" in done.stderr
    assert sorted(script.parent.rglob("*")) == before


def test_the_plugin_gets_the_same_arguments_and_environment_as_in_the_run(
    tmp_path: Path, elsewhere: Path
) -> None:
    executable = install(tmp_path / "bin" / f"spleen {AWKWARD.replace('/', '')}", "reports.py")
    environment = {
        **PLUGIN.environment(threads=2),
        "AWKWARD": AWKWARD,
        "PFMS_JOB": "of the server",
    }
    script = write_job(tmp_path / "job", str(executable), environment=environment)
    run = json.loads((script.parent / "output" / "report.json").read_text())
    done = call(script, "out", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    rerun = json.loads((script.parent / "output" / "report.json").read_text())
    assert rerun["cwd"] == run["cwd"]
    assert rerun["arguments"] == [*run["arguments"][:-1], f"{elsewhere}/out"]
    for name, value in environment.items():
        if name != "PFMS_JOB":
            assert rerun["environment"][name] == value
    assert "PFMS_JOB" not in rerun["environment"]


def test_what_is_specific_to_the_machine_is_not_in_the_script(tmp_path: Path) -> None:
    host = HostFacts(has_user=False, spare_home="/srv/pfms/home")
    argv = PLUGIN.argv(["/opt/spleenseg"], "cpu")
    assert "/srv/pfms" not in PLUGIN.command_script(argv, PLUGIN.environment(host))


def test_if_the_recorded_executable_is_gone_the_one_on_path_is_used(
    tmp_path: Path, elsewhere: Path
) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    script = write_job(tmp_path / "job", str(executable))
    executable.unlink()
    other = install(tmp_path / "other bin" / "spleenseg", "ok.py")
    path = f"{other.parent}{os.pathsep}/usr/bin{os.pathsep}/bin"
    done = call(script, cwd=elsewhere, PATH=path)
    assert done.returncode == 0, done.stderr
    assert onehot(script.parent / "rerun" / RESULT) == onehot(
        script.parent / PLUGIN.outputs["onehot"]
    )


def test_without_any_executable_it_says_so_and_leaves_nothing(
    tmp_path: Path, elsewhere: Path
) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    script = write_job(tmp_path / "job", str(executable))
    executable.unlink()
    done = call(script, "out", cwd=elsewhere, PATH="/usr/bin:/bin")
    assert done.returncode == 127
    assert f"neither {executable} nor 'spleenseg' on PATH was found" in done.stderr
    assert list(elsewhere.iterdir()) == []


def test_a_plugin_that_is_a_script_is_run_by_its_interpreter(
    tmp_path: Path, elsewhere: Path
) -> None:
    plugins = tmp_path / "my plugins"
    shutil.copytree(PLUGINS, plugins)
    script = write_job(tmp_path / "job", sys.executable, str(plugins / "ok.py"))
    done = call(script, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert onehot(script.parent / "rerun" / RESULT) == onehot(
        script.parent / PLUGIN.outputs["onehot"]
    )

    shutil.rmtree(plugins)
    done = call(script, "out", cwd=elsewhere)
    assert done.returncode == 127
    assert f"the plugin was run by {plugins}/ok.py, which was not found" in done.stderr
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("gone", [PLUGIN.volume, PLUGIN.weights])
def test_a_run_whose_input_was_purged_says_so(tmp_path: Path, gone: str) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    script = write_job(tmp_path / "job", str(executable))
    (script.parent / gone).unlink()
    done = call(script, cwd=tmp_path)
    assert done.returncode == 1
    assert f"{gone} is no longer there" in done.stderr
    assert not (script.parent / "rerun").exists()


def test_the_plugins_exit_code_is_the_scripts(tmp_path: Path) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    script = write_job(tmp_path / "job", str(executable))
    install(executable, "exit3.py")
    assert call(script, cwd=tmp_path).returncode == 3


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_is_given(tmp_path: Path, arguments: list[str]) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    script = write_job(tmp_path / "job", str(executable))
    done = call(script, *arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: command.sh [OUTPUTDIR]")


@pytest.mark.parametrize("arguments", [["a", "b"], ["--device"]])
def test_wrong_usage_is_reported_and_does_nothing(tmp_path: Path, arguments: list[str]) -> None:
    executable = install(tmp_path / "bin" / "spleenseg", "ok.py")
    script = write_job(tmp_path / "job", str(executable))
    before = sorted(tmp_path.rglob("*"))
    done = call(script, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "usage: command.sh" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can write to."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_without_a_name_or_a_writable_home_can_run_it(
    open_folder: Path,
) -> None:
    executable = open_folder / "spleenseg"
    executable.write_text('#!/bin/sh\nmkdir -p output && env >"output/$(id -u)"\n')
    executable.chmod(0o755)
    script = write_job(open_folder / "job", str(executable))
    for path in (script.parent, script.parent / "output"):
        path.chmod(0o777)
    done = subprocess.run(
        [script],
        user=54321,
        env={"PATH": os.environ["PATH"], "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = dict(
        line.split("=", 1) for line in (script.parent / "output" / "54321").read_text().splitlines()
    )
    assert seen["USER"] == "pfms"
    assert Path(seen["HOME"]).is_dir()
    assert Path(seen["HOME"]).stat().st_uid == 54321
    assert seen["MPLCONFIGDIR"].startswith(seen["HOME"])
    shutil.rmtree(seen["HOME"])
