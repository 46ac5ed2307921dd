"""Settings of Python in the server's environment, as hardened images have them, break no run."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pfms.executors.fresh import FreshExecutor
from pfms.models.check import weights_environment
from pfms.plugin.python_settings import NOT_FOR_RUNS
from pfms.processes.run import child_environment
from tests.conftest import PLUGINS, ROOT, StartServer, image_of, nifti_bytes, start_real
from tests.house import House, a_house

HARDENED = {
    "PYTHONSAFEPATH": "1",
    "PYTHONWARNINGS": "error",
    "PYTHONNOUSERSITE": "1",
    "PYTHONHASHSEED": "7",
}

TOUCHY = f"""
import sys, warnings
import beside
warnings.warn("old", DeprecationWarning)
sys.path.append({str(PLUGINS)!r})
from common import segment
segment()
"""


@pytest.fixture
def hardened(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HARDENED.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with a_house(tmp_path) as house:
        yield house


def touchy(folder: Path) -> Path:
    """A plugin that relies on what such settings take away."""
    (folder / "beside.py").write_text("")
    (folder / "touchy.py").write_text(TOUCHY)
    return folder / "touchy.py"


@pytest.mark.usefixtures("hardened")
@pytest.mark.parametrize("executor", ["fresh", "warm"])
def test_in_a_hardened_environment_both_a_server_and_command_sh_run_the_plugin(
    executor: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(touchy(tmp_path), executor=executor)

    answer = server.infer()

    assert answer.status_code == 200, answer.text
    job = server.job(answer.headers["x-pfms-job"])
    assert job["executor"] == executor
    folder = server.workspace / "jobs" / job["id"]
    again = subprocess.run([folder / "command.sh"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (folder / "rerun" / "inference" / "input" / "input_seg.nii.gz").is_file()


@pytest.mark.real
@pytest.mark.parametrize("executor", ["warm", pytest.param("fresh", marks=pytest.mark.every)])
def test_the_real_plugin_runs_in_a_hardened_environment(
    executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "error")

    server = start_real(tmp_path / "workspace", executor)
    try:
        answer = server.infer(nifti_bytes((40, 40, 24)))
        assert answer.status_code == 200, answer.text
        assert image_of(answer.content).shape == (40, 40, 24)
    finally:
        server.stop()


@pytest.mark.anyio
@pytest.mark.usefixtures("hardened")
async def test_both_executors_find_the_same_modules_and_end_with_the_same_code(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONINSPECT", "PYTHONVERBOSE", "PYTHONOPTIMIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(house.folder)
    for folder in ("packages", "more"):
        (house.folder / folder).mkdir()
        for name in ("beside", "warm_plugin", "of_the_path"):
            (house.folder / folder / f"{name}.py").write_text(f"WHERE = {folder!r}")
    (house.folder / "beside.py").write_text("WHERE = 'beside'")
    monkeypatch.setenv("PYTHONPATH", f"packages::{house.folder / 'more'}")
    command = house.script(
        "import beside, of_the_path, warm_plugin, os, sys\n"
        "print(beside.WHERE, of_the_path.WHERE, warm_plugin.WHERE)\n"
        "print(os.environ['PYTHONPATH'], sys.flags.optimize, sys.warnoptions)\nsys.exit(3)"
    )

    fresh = await house.run(FreshExecutor(house.mark), command)
    warm = await house.run(await house.warmed(command), command)

    path = f"{house.folder / 'packages'}:{house.folder / 'more'}"
    assert fresh[1] == f"beside packages packages\n{path} 0 []\n"
    assert warm[1] == fresh[1]
    assert (fresh[0].code, warm[0].code) == (3, 3)


def test_children_get_the_settings_that_locate_packages_and_none_that_change_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = {
        "PYTHONPATH": "/srv/packages",
        "PYTHONUSERBASE": "/srv/user",
        "PYTHONNOUSERSITE": "1",
        "PYTHONHOME": "/srv/python",
    }
    for name, value in (where | dict.fromkeys(NOT_FOR_RUNS, "1")).items():
        monkeypatch.setenv(name, value)

    for environment in (child_environment({}), weights_environment()):
        assert where.items() <= environment.items()
        assert not environment.keys() & set(NOT_FOR_RUNS)


@pytest.mark.parametrize("program", ["warm_parent.py", "weights_child.py"])
@pytest.mark.parametrize("options", [["-P"], ["-I"], ["-W", "error"]])
def test_our_own_programs_find_their_modules_whatever_options_python_gets(
    program: str, options: list[str], tmp_path: Path
) -> None:
    """As if the interpreter were a script that passes options to Python."""
    (tmp_path / "empty").touch()
    script = str(ROOT / "pfms" / "programs" / program)
    arguments = [str(tmp_path / "empty"), str(tmp_path / "out")]
    for name in ("warm_plugin", "weights_search", "weights_bytes", "weights_extras"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")

    ended = subprocess.run(
        [sys.executable, *options, script, *arguments],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    if program == "weights_child.py":
        assert "The file is empty." in ended.stdout
    else:  # it got as far as its arguments
        assert ended.stderr.splitlines()[-1].startswith("ValueError: invalid literal for int()")
