"""The folder of a run: what lies in it, what the record tells, and that it can be run again."""

import gzip
import hashlib
import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pfms.plugin import PLUGIN
from tests.conftest import Server, nifti_bytes, spleen_of


def test_the_folder_of_a_run_has_the_documented_files(server: Server) -> None:
    volume = nifti_bytes(seed=7)
    answer = server.infer(volume)
    folder = server.workspace / "jobs" / answer.headers["x-pfms-job"]

    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "input/imagesTs/input.nii.gz",
        "input/model.pth",
        "output/inference/input/input_seg.nii.gz",
        "output/inference/infer-1.png",
        "result/segmentation.nii.gz",
        "command.sh",
        "plugin.log",
        "job.json",
    }
    assert (folder / "result/segmentation.nii.gz").read_bytes() == answer.content
    assert (folder / "input/imagesTs/input.nii.gz").read_bytes() == volume
    stored = server.workspace / "models/demo/model.pth"
    assert (folder / "input/model.pth").samefile(stored)
    assert "novel inference" in (folder / "plugin.log").read_text()


def test_the_record_has_request_versions_checksums_and_times(server: Server) -> None:
    volume = nifti_bytes(seed=8)
    answer = server.infer(volume)
    record = json.loads(
        (server.workspace / "jobs" / answer.headers["x-pfms-job"] / "job.json").read_bytes()
    )

    assert record["state"] == "succeeded"
    assert record["created_at"] <= record["started_at"] <= record["ended_at"]
    assert record["model"] == {"modelID": "demo", "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert record["volume"]["sha256"] == hashlib.sha256(volume).hexdigest()
    assert record["volume"]["size"] == len(volume)
    assert record["volume"]["shape"] == [24, 20, 24]
    assert record["volume"]["spacing"] == [3.0, 3.0, 3.0]
    assert record["volume"]["orientation"] == "RAS"
    assert record["segmentation"]["sha256"] == hashlib.sha256(answer.content).hexdigest()
    spleen = spleen_of(volume)
    voxels = spleen.astype(np.uint8).tobytes(order="F")
    assert record["segmentation"]["voxels_sha256"] == hashlib.sha256(voxels).hexdigest()
    assert record["segmentation"]["spleen_voxels"] == spleen.sum()
    assert record["segmentation"]["spleen_ml"] == pytest.approx(spleen.sum() * 0.027)
    assert record["resultant"] == "labels"
    assert record["device"] == "cpu"
    assert record["exit_code"] == 0
    assert {"python", "torch", "monai", "spleenseg", "pfms"} <= record["versions"].keys()
    assert record["error"] is None


def test_command_sh_gives_the_same_voxels_in_place_and_in_a_copy(
    server: Server, tmp_path: Path
) -> None:
    folder = server.workspace / "jobs" / server.infer().headers["x-pfms-job"]
    copy = tmp_path / "a folder elsewhere"
    subprocess.run(["cp", "-a", folder, copy], check=True)
    wanted = np.asanyarray(nib.load(folder / PLUGIN.outputs["onehot"]).dataobj)

    for place in (folder, copy):
        subprocess.run([place / "command.sh"], check=True, cwd=tmp_path, capture_output=True)
        made = nib.load(place / "rerun/inference/input/input_seg.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(made.dataobj), wanted)


def test_neither_file_name_nor_header_texts_are_kept(server: Server) -> None:
    image = nib.Nifti1Image(np.full((24, 20, 24), -500, np.int16), np.eye(4))
    image.header["descrip"] = b"Doe^Jane 1970"
    image.header["db_name"] = b"Doe^Jane"
    image.header["aux_file"] = b"Doe^Jane.hdr"
    content = gzip.compress(image.to_bytes())
    answer = server.http.post(
        "/spleenseg/NIfTIinference/",
        params={"modelID": "demo"},
        files={"file": ("Doe^Jane.nii.gz", content)},
    )

    assert answer.status_code == 200, answer.text
    job_id = answer.headers["x-pfms-job"]
    told = [
        (server.workspace / "jobs" / job_id / name).read_bytes()
        for name in ("job.json", "plugin.log", "command.sh")
    ]
    told += [server.log.read_bytes(), server.http.get(f"/jobs/{job_id}").content]
    told += [gzip.decompress(answer.content), str(answer.headers).encode()]
    told += [path.read_bytes() for path in server.workspace.glob("pfms.db*")]
    assert not [text for text in told if b"Doe" in text or b"Jane" in text]
