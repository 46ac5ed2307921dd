"""The plugin's own remote mode, unpatched, is the reference client."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from examples.phantoms import make_phantom
from tests import tokens
from tests.conftest import Server, nifti_bytes, seed_model, start

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def test_spleensegs_remote_mode_writes_the_labels(real_server: Server, tmp_path: Path) -> None:
    images = tmp_path / "in" / "imagesTs"
    images.mkdir(parents=True)
    volume = images / "ct.nii.gz"
    nib.save(make_phantom(4, (48, 40, 32), (5.0, 5.0, 6.0)).volume, volume)

    ended = subprocess.run(
        [
            *(Path(sys.executable).with_name("spleenseg"), "--device", "cpu"),
            *("--mode", f"demo@{real_server.url}/api/v1/", "in", "out"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert ended.returncode == 0, ended.stderr
    assert "Error" not in ended.stdout
    received = tmp_path / "out" / "output-0.nii.gz"
    job = real_server.http.get("/jobs", params={"limit": 1}).json()["jobs"][0]
    result = real_server.http.get(f"/jobs/{job['id']}/result").content
    assert received.read_bytes() == result
    labels, sent = nib.load(received), nib.load(volume)
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(labels.affine, sent.affine)
    assert labels.shape == sent.shape
    assert 200 < np.asanyarray(labels.dataobj).sum() < 5000


def test_it_works_against_a_server_with_tokens_by_a_netrc(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    token = tokens.add(file, "ward", "infer")
    seed_model(tmp_path / "workspace")
    server = start(tmp_path / "workspace", tokens_file=file)
    images = tmp_path / "in" / "imagesTs"
    images.mkdir(parents=True)
    (images / "ct.nii.gz").write_bytes(nifti_bytes())
    home = tmp_path / "home"
    home.mkdir()
    netrc = home / ".netrc"
    line = [
        *(str(Path(sys.executable).with_name("spleenseg")), "--device", "cpu"),
        *("--mode", f"demo@{server.url}/api/v1/", "in", "out"),
    ]
    results = []
    for password in ("wrong", token):
        netrc.write_text(f"machine 127.0.0.1 login anyone password {password}\n")
        netrc.chmod(0o600)
        environment = {**os.environ, "HOME": str(home)}
        environment.pop("NETRC", None)
        ended = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        results.append((ended.stdout, (tmp_path / "out" / "output-0.nii.gz").exists()))
    jobs = server.http.get("/jobs", headers=tokens.bearer(token)).json()["jobs"]
    server.stop()

    assert "Error: 401" in results[0][0]
    assert "Error" not in results[1][0]
    assert [there for _, there in results] == [False, True]
    assert [job["owner"] for job in jobs] == ["ward"]


def test_its_sendmodel_call_stores_weights(real_server: Server, tmp_path: Path) -> None:
    """`spleenseg.comms.rpc` as its users call it to push a model: a field of bare bytes."""
    shutil.copy(Path(__file__).parent.parent / "examples/demo_model.pth", tmp_path / "model.pth")

    ended = subprocess.run(
        [
            *(sys.executable, "-m", "spleenseg.comms.rpc", "--do", "sendmodel"),
            *("--pfms", f"{real_server.url}/api/v1/", "--pthModel", "model.pth"),
            *("--modelID", "sent"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert ended.returncode == 0, ended.stderr
    stored, demo = (
        real_server.http.get(f"/spleenseg/modelpth/{name}").json() for name in ("sent", "demo")
    )
    assert stored["sha256"] == demo["sha256"]
