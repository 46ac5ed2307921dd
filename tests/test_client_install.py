"""`pip install pfms`: the client and its commands, without anything that only a server needs."""

import os
import subprocess
from pathlib import Path

import pytest

from pfms.client import Client
from tests.command import environment
from tests.conftest import ROOT, Server, nifti_bytes
from tools.install import CONSTRAINTS, create

LARGEST = 30_000_000  # bytes


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with nothing but the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("client")
    venv = folder / "venv"
    python = venv / "bin" / "python"
    create(venv, python)
    pins = {name: CONSTRAINTS.as_uri() for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")}

    def pip(*words: str | Path) -> None:
        line = [python, "-m", "pip", "--disable-pip-version-check", *words]
        ended = subprocess.run(line, env=os.environ | pins, capture_output=True, text=True)
        if ended.returncode and "CI" not in os.environ and "from versions: none" in ended.stderr:
            pytest.skip("no package index can be reached")
        assert ended.returncode == 0, ended.stderr

    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("pfms-*.whl")
    pip("install", "--quiet", wheel)
    pip("uninstall", "--quiet", "--yes", "pip", "setuptools")
    return venv


def test_it_is_small(installed: Path) -> None:
    size = sum(path.lstat().st_size for path in (installed / "lib").rglob("*"))
    assert size < LARGEST
    packages = {path.name for path in installed.glob("lib/*/site-packages/*")}
    assert packages & {"numpy", "fastapi", "nibabel", "pydantic", "cryptography"} == set()


def run(installed: Path, *words: str | Path, code: int = 0, **settings: str) -> str:
    """Run a program of the environment, which must end with `code`; what it prints."""
    program, *rest = words
    done = subprocess.run(
        [installed / "bin" / program, *rest],
        cwd=installed,
        env=environment(**settings),
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_it_segments(installed: Path, server: Server) -> None:
    volume = installed / "ct.nii.gz"
    volume.write_bytes(nifti_bytes())
    said = run(installed, "pfms", "infer", volume, "--model", "demo", server=server.url)
    assert "ml" in said
    code = (
        "import sys; from pfms.client import Client\n"
        "done = Client(sys.argv[1]).segment(sys.argv[2], model='demo')\n"
        "print(done.ml)\n"
        "try: done.image\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    with Client(server.url) as client:
        ml = client.segment(volume, "demo").ml
    lines = run(installed, "python", "-W", "ignore", "-c", code, server.url, volume).splitlines()
    assert lines == [str(ml), "an image needs nibabel: pip install 'pfms[nibabel]'"]


def test_a_folder_of_dicom_says_what_to_install(installed: Path) -> None:
    folder = installed / "series"
    folder.mkdir()
    (folder / "IM1").write_bytes(bytes(128) + b"DICM")
    said = run(installed, "pfms", "infer", folder, "--model", "demo", code=2)
    assert "pip install 'pfms[dicom]'" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("command", ["serve", "doctor", "tokens list", "jobs reindex"])
def test_a_command_of_the_server_says_what_to_install(installed: Path, command: str) -> None:
    said = run(installed, "pfms", *command.split(), code=2)
    assert "pip install 'pfms[server]'" in said
    assert len(said.splitlines()) == 1


def test_every_help_answers(installed: Path) -> None:
    for words in ((), ("infer",), ("serve",), ("jobs",), ("tokens",), ("replay",), ("models",)):
        assert "Usage" in run(installed, "pfms", *words, "--help")


def test_its_types_are_there(installed: Path) -> None:
    (marker,) = installed.glob("lib/*/site-packages/pfms/py.typed")
    assert marker.exists()
