"""Clients that are generated from the OpenAPI document: each makes a run with a real server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, StartServer, image_of, nifti_bytes, spleen_of

PROGRAMS = ROOT / "tests" / "generated"
WEIGHTS = ROOT / "examples" / "demo_model.pth"
# Debian's tsc (4.8) does not understand where the generated code narrows `object`.
TSC = "tsc --strict --noImplicitAny false --target es2020 --lib es2020,dom --module commonjs"
# Of each language, by the generator's name for it: the compiler, and the program that it makes.
LANGUAGES = {
    "typescript-fetch": (f"{TSC} run.ts node.d.ts", "node run.js"),
    "go": ("go build -o run .", "./run"),
}


def generate(server: str, language: str, folder: Path) -> None:
    """Make the client, in `folder`/pfms."""
    generator = str(Path(sys.executable).with_name("openapi-generator-cli"))
    line = [generator, "generate", "-i", f"{server}/openapi.json", "-g", language, "-o", "pfms"]
    succeeds([*line, "--additional-properties=packageName=pfms,withGoMod=false"], folder)


def succeeds(line: list[str], folder: Path) -> str:
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_generated_client_makes_a_run(
    start_server: StartServer, tmp_path: Path, language: str
) -> None:
    compiler, program = map(str.split, LANGUAGES[language])
    for name in ("java", compiler[0], program[0]):
        if not shutil.which(name) and not name.startswith(".") and "CI" not in os.environ:
            pytest.skip(f"{name} is not installed")
    server = start_server()
    volume = nifti_bytes()
    (tmp_path / "ct.nii.gz").write_bytes(volume)
    shutil.copytree(PROGRAMS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "go.mod").write_text("module example\n")

    generate(server.url, language, tmp_path)
    succeeds(compiler, tmp_path)
    said = succeeds([*program, server.url, str(WEIGHTS), "ct.nii.gz", "."], tmp_path)

    spleen = spleen_of(volume)
    job, *_ = server.http.get("/jobs").json()["jobs"]
    model = job["model"]["modelID"]
    size = server.http.get(f"/spleenseg/modelpth/{model}").json()["size"]
    assert said.splitlines() == [
        f"model {model} {size}",
        f"job succeeded {spleen.sum()}",
        "newest true",
        "refused 404 job-not-found",
    ]
    for name in ("blocking.nii.gz", "async.nii.gz"):
        labels = np.asanyarray(image_of((tmp_path / name).read_bytes()).dataobj)
        assert np.array_equal(labels == 1, spleen)
