"""How .venv is built: by `make`, once, from pinned versions."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

INPUTS = ("Makefile", "pyproject.toml", "constraints.txt", "tools/install.py")
# Takes the place of Python: notes what it was called with, and leaves what tools/install.py leaves.
A_PYTHON = """#!/bin/sh
echo "$@" >>calls
mkdir -p .venv/bin
cp "$0" .venv/bin/python
[ -z "$3" ] || printf %s "$3" >.venv/.torch-index
"""


def name_of(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def pins() -> dict[str, dict[str, str]]:
    """The constraints: a dict of names and versions for each paragraph, by its first comment."""
    found: dict[str, dict[str, str]] = {}
    for paragraph in (ROOT / "constraints.txt").read_text().split("\n\n"):
        lines = paragraph.strip().splitlines()
        pairs = (line.split("==") for line in lines if not line.startswith("#"))
        found[lines[0]] = {name_of(name): version for name, version in pairs}
    return found


def installed(*extras: str) -> dict[str, str]:
    """The versions of all that pfms with these extras and the plugin ask for, directly or not."""
    # spleenseg is installed without what its metadata requires.
    todo = [("pfms", frozenset(extras)), ("spleenseg", frozenset())]
    seen: dict[tuple[str, frozenset[str]], str] = {}
    while todo:
        name, _ = asked = todo.pop()
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        seen[asked] = found.version.partition("+")[0]  # 2.13.0+cpu
        for line in [] if name == "spleenseg" else found.requires or []:
            wanted = Requirement(line)
            marker = wanted.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *asked[1])):
                asks = (name_of(wanted.name), frozenset(wanted.extras))
                todo += [asks] if asks not in seen else []
    return {name: version for (name, _), version in seen.items() if name != "pfms"}


def test_what_is_installed_is_what_is_pinned() -> None:
    everywhere, *elsewhere = pins().values()
    [of_ray] = [apart for apart in elsewhere if "ray" in apart]
    # What the CUDA build of torch brings along is pinned by torch, or apart.
    cuda = re.compile(r"nvidia-(?!ml-py)|cuda-|triton")
    found = installed("server", "plugin", "dicom", "dev", "docs")
    there = {name: version for name, version in found.items() if not cuda.match(name)}
    with_ray = installed("server", "ray").items()  # no more of it where Ray is not installed
    assert with_ray <= (everywhere | of_ray).items()
    assert there.items() <= everywhere.items()
    if sys.version_info[:2] == (3, 11):  # 3.12 needs fewer
        assert everywhere.keys() <= there.keys()
    assert all(apart.keys().isdisjoint(everywhere) for apart in elsewhere)


def test_no_index_is_named() -> None:
    for path in (*INPUTS, "Dockerfile", "docker-compose.yml"):
        assert not re.search(r"https?://", (ROOT / path).read_text()), path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make install` looks at, in a folder whose name has a space."""
    folder = tmp_path / "a clone"
    (folder / "tools").mkdir(parents=True)
    for path in INPUTS:
        shutil.copy(ROOT / path, folder / path)
    python = folder / "a-python"
    python.write_text(A_PYTHON)
    python.chmod(0o755)
    return folder


@pytest.fixture
def make(checkout: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
        program = shutil.which("make")
        assert program
        return subprocess.run(
            [program, *arguments],
            cwd=checkout,
            env={"PATH": path},
            capture_output=True,
            text=True,
        )

    return run


def calls(checkout: Path) -> list[str]:
    return (checkout / "calls").read_text().splitlines()


Make = Callable[..., subprocess.CompletedProcess[str]]


def test_make_installs_once_and_again_when_an_input_has_changed(checkout: Path, make: Make) -> None:
    for _ in range(2):
        assert make("install", "PYTHON=./a-python").returncode == 0
    assert calls(checkout) == ["tools/install.py --torch-index "]
    for path in INPUTS[1:]:
        now = (checkout / ".venv" / ".installed").stat().st_mtime
        os.utime(checkout / path, (now + 1, now + 1))
        made = (checkout / "calls").stat().st_size
        make("install", "PYTHON=./a-python")
        assert (checkout / "calls").stat().st_size > made, path
        os.utime(checkout / path, (now - 1, now - 1))
        os.utime(checkout / ".venv" / ".installed", (now, now))


def test_make_adds_ray_once(checkout: Path, make: Make) -> None:
    for _ in range(2):
        assert make("install-ray", "PYTHON=./a-python").returncode == 0
    assert calls(checkout) == [
        "tools/install.py --torch-index ",
        "-m pip install --quiet pfms[ray]",  # the rest of it is there
    ]


def test_make_installs_again_for_another_torch_index_and_then_stays_with_it(
    checkout: Path, make: Make
) -> None:
    for index in ("", "here", "here", "", "there"):
        make("install", "PYTHON=./a-python", f"TORCH_INDEX={index}")
    given = [line.removeprefix("tools/install.py --torch-index ") for line in calls(checkout)]
    assert given == ["", "here", "there"]


def test_without_a_python_that_fits_make_says_so_in_one_line(tmp_path: Path, make: Make) -> None:
    tools = tmp_path / "bin"  # all that the Makefile calls, and Pythons of another version
    tools.mkdir()
    for name in ("sh", "echo", "touch", "cat"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    for name in ("python3", "python"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    told = make("install", path=str(tools))
    assert told.returncode == 2
    assert told.stdout == ""
    first, *after = told.stderr.splitlines()
    assert first == (
        "pfms needs Python 3.11 or 3.12, and none was found: make PYTHON=/path/to/python3.11"
    )
    assert [line.partition(":")[0] for line in after] == ["make"]  # its own, of the exit code


def test_another_version_of_python_is_refused_in_one_line() -> None:
    as_another = (
        "import runpy, sys; sys.version_info = (3, 13, 1, 'final', 0); "
        "runpy.run_path('tools/install.py', run_name='__main__')"
    )
    told = subprocess.run(
        [sys.executable, "-c", as_another], cwd=ROOT, capture_output=True, text=True
    )
    assert told.returncode == 2
    assert told.stderr == (
        "pfms needs Python 3.11 or 3.12, this is 3.13.1: make PYTHON=/path/to/python3.11\n"
    )


def test_make_help_names_every_target(make: Make) -> None:
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    told = make("help").stdout
    for target in set(phony.split()) - {"help", "another-index"}:
        assert re.search(rf"\bmake {target}\b", told), target
