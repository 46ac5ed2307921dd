"""What existing clients rely on: the calls, their answers and the files, with a fake plugin."""

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pfms.plugin import PLUGIN
from tests.conftest import Server, StartServer, image_of, nifti_bytes, seed_model, spleen_of
from tests.wire import FORM, Wire, form, part

INFER = "/api/v1/spleenseg/NIfTIinference"


# --- inference -----------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_volume_comes_back_as_labels_on_its_own_grid(server: Server, slash: str) -> None:
    volume = nifti_bytes(seed=1)

    answer = server.http.post(
        f"/spleenseg/NIfTIinference{slash}", params={"modelID": "demo"}, files={"file": volume}
    )

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="output.nii.gz"'
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert "x-pfms-warning" not in answer.headers
    labels, sent = image_of(answer.content), image_of(volume)
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(labels.dataobj), spleen_of(volume))
    for name in ("pixdim", "xyzt_units", "sform_code", "qform_code", "srow_x", "quatern_b"):
        np.testing.assert_array_equal(labels.header[name], sent.header[name])
    np.testing.assert_array_equal(labels.affine, sent.affine)


def test_a_plain_nii_is_recognised_by_its_bytes_whatever_its_name(server: Server) -> None:
    plain = nifti_bytes(seed=2, gzipped=False)

    answer = server.http.post(
        "/spleenseg/NIfTIinference/",
        params={"modelID": "demo"},
        files={"file": ("volume.nii.gz", plain, "application/gzip")},
    )

    assert answer.status_code == 200, answer.text
    same = server.infer(nifti_bytes(seed=2))
    assert same.content == answer.content
    kept = server.workspace / "jobs" / answer.headers["x-pfms-job"] / "input/imagesTs/input.nii.gz"
    assert gzip.decompress(kept.read_bytes()) == plain


def test_onehot_is_what_the_plugin_wrote_untouched(server: Server) -> None:
    answer = server.infer(params={"resultant": "onehot"})

    assert answer.status_code == 200, answer.text
    job = server.workspace / "jobs" / answer.headers["x-pfms-job"]
    assert answer.content == (job / PLUGIN.outputs["onehot"]).read_bytes()
    assert answer.headers["content-disposition"] == 'attachment; filename="output.nii.gz"'


def test_logits_are_the_plugins_output_of_a_run_that_makes_them(server: Server) -> None:
    answer = server.infer(params={"resultant": "logits"})

    assert answer.status_code == 200, answer.text
    job = server.workspace / "jobs" / answer.headers["x-pfms-job"]
    assert answer.content == (job / "output/inference/output.nii.gz").read_bytes()
    assert "--logTransformVols" in server.job(answer.headers["x-pfms-job"])["command"]
    assert "--logTransformVols" in (job / "command.sh").read_text()


def test_runs_for_labels_do_not_write_the_logits(server: Server) -> None:
    job = server.job(server.infer(params={"resultant": "labels"}).headers["x-pfms-job"])

    assert "--logTransformVols" not in job["command"]


def test_a_volume_that_is_not_a_ct_runs_with_a_warning(server: Server) -> None:
    voxels = np.ones((24, 20, 24), np.int16)
    answer = server.infer(nib.Nifti1Image(voxels, np.eye(4)).to_bytes())

    assert answer.status_code == 200
    assert "Hounsfield" in answer.headers["x-pfms-warning"]
    assert server.job(answer.headers["x-pfms-job"])["warnings"] == [
        answer.headers["x-pfms-warning"]
    ]


def test_a_body_in_chunks_of_unknown_length_is_accepted(server: Server) -> None:
    volume = nifti_bytes(seed=3)
    body = form(part(volume))

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(body), 61):
            yield body[at : at + 61]

    answer = server.http.post(
        "/spleenseg/NIfTIinference",
        params={"modelID": "demo"},
        content=pieces(),
        headers={"Content-Type": FORM},
    )

    assert answer.request.headers["transfer-encoding"] == "chunked"
    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(
        np.asanyarray(image_of(answer.content).dataobj), spleen_of(volume)
    )


@pytest.mark.parametrize(
    "parts",
    [
        lambda volume: [part(volume)],  # as the plugin's remote mode and others: no filename
        lambda volume: [part(volume, "form-data; name=file")],
        lambda volume: [part(volume, 'FORM-DATA; NAME="file"; filename=""')],
        lambda volume: [part(volume, 'form-data; name="file"; filename="../../etc/x; y=z.txt"')],
        lambda volume: [part(volume, "form-data; name=\"file\"; filename*=UTF-8''%e2%82%ac.nii")],
        lambda volume: [part(volume, 'form-data; filename="CT\\"1\\".nii"; name="file"')],
        lambda volume: [part(volume, more="content-type: text/plain; charset=utf-8\r\n")],
        lambda volume: [
            part(b"v" * 5000, 'form-data; name="comment"'),
            part(volume),
            part(b"", 'form-data; name="submit"'),
        ],
        lambda volume: [part(b"", 'form-data; name="fil"; filename="file"'), part(volume)],
    ],
)
def test_the_field_counts_and_nothing_else_of_its_part(server: Server, parts: object) -> None:
    assert callable(parts)
    answer = server.http.post(
        "/spleenseg/NIfTIinference",
        params={"modelID": "demo", "resultant": "logits"},
        content=form(*parts(nifti_bytes((8, 8, 8)))),
        headers={"Content-Type": FORM},
    )

    # A volume of eight slices has no logits: it was found, whole, and looked at.
    assert answer.json()["code"] == "unsupported-nifti", answer.text


def test_a_client_that_waits_for_100_continue_gets_it(server: Server) -> None:
    body = form(part(nifti_bytes()))
    with Wire(server.url) as wire:
        wire.head(
            "POST",
            f"{INFER}?modelID=demo",
            Content_Type=FORM,
            Content_Length=len(body),
            Expect="100-continue",
        )
        assert wire.line() == "HTTP/1.1 100 Continue"
        wire.send(body)
        answer = wire.answer()

    assert answer.status == 200, answer.body


def test_two_requests_at_once_get_each_its_own_result(server: Server) -> None:
    volumes = [nifti_bytes(seed=seed) for seed in (5, 6)]
    jobs = [server.submit(volume) for volume in volumes]

    for job_id, volume in zip(jobs, volumes, strict=True):
        assert server.ended(job_id)["state"] == "succeeded"
        labels = image_of(server.http.get(f"/jobs/{job_id}/result").content)
        np.testing.assert_array_equal(np.asanyarray(labels.dataobj), spleen_of(volume))


# --- models ----------------------------------------------------------------------------------


@pytest.mark.real
def test_weights_that_are_uploaded_are_listed_shown_used_and_removed(server: Server) -> None:
    weights = (Path(__file__).parent.parent / "examples" / "demo_model.pth").read_bytes()

    answer = server.http.post(
        "/spleenseg/modelpth/",
        params={"modelID": "my-inference.1"},
        content=form(part(weights)),
        headers={"Content-Type": FORM},
        timeout=120,
    )

    assert answer.status_code == 200, answer.text
    body = answer.json()
    stored = (server.workspace / body["location"]).read_bytes()
    assert body == {
        "status": True,
        "message": body["message"],
        "location": "models/my-inference.1/model.pth",
        "modelID": "my-inference.1",
        "sha256": hashlib.sha256(stored).hexdigest(),
        "upload_sha256": hashlib.sha256(weights).hexdigest(),
        "size": len(stored),
        "warnings": body["warnings"],
    }
    assert any("inference" in warning for warning in body["warnings"])
    assert server.http.get("/spleenseg/modelpth").json() == {"models": ["demo", "my-inference.1"]}
    shown = server.http.get("/spleenseg/modelpth/my-inference.1").json()
    assert shown["sha256"] == body["sha256"]
    assert shown["source"] == "upload"
    assert shown.keys() == {
        *("modelID", "sha256", "upload_sha256", "size", "uploaded_at", "source", "warnings")
    }
    job = server.job(server.infer(model="my-inference.1").headers["x-pfms-job"])
    assert job["model"] == {"modelID": "my-inference.1", "sha256": body["sha256"]}
    assert server.http.delete("/spleenseg/modelpth/my-inference.1/").status_code == 204
    assert server.http.get("/spleenseg/modelpth/").json() == {"models": ["demo"]}
    assert server.uploads() == []


def test_a_model_replaced_or_removed_meanwhile_does_not_change_a_run(
    start_server: StartServer,
) -> None:
    server = start_server("staged.py")
    seed_model(server.workspace, "other", b"first")
    first = server.submit(model="demo")
    second = server.submit(model="other")
    seed_model(server.workspace, "demo", b"another")
    assert server.http.delete("/spleenseg/modelpth/other").status_code == 204

    for job_id, weights in ((first, b"weights"), (second, b"first")):
        folder = server.workspace / "jobs" / job_id
        for name in ("infer", "save", "end"):
            (folder / name).touch()
        assert server.ended(job_id)["model"]["sha256"] == hashlib.sha256(weights).hexdigest()
        assert (folder / "input/model.pth").read_bytes() == weights
    assert server.infer(model="other").json()["code"] == "model-not-found"


# --- every path ------------------------------------------------------------------------------


def test_every_get_answers_head_and_both_forms_of_its_path(server: Server) -> None:
    job_id = server.infer().headers["x-pfms-job"]
    paths = server.http.get(f"{server.url}/openapi.json").json()["paths"]
    gets = [path for path, calls in paths.items() if "get" in calls]
    assert len(gets) > 10

    for path in gets:
        url = f"{server.url}{path}".replace("{job_id}", job_id).replace("{modelID}", "demo")
        seen = set()
        for method, slash in (("GET", ""), ("GET", "/"), ("HEAD", ""), ("HEAD", "/")):
            answer = server.http.request(method, url + slash)
            assert answer.status_code == 200, (method, path, slash, answer.text)
            assert method == "GET" or answer.content == b""
            seen.add(answer.headers["content-type"])
        assert len(seen) == 1, path
    assert server.uploads() == []


def test_head_where_there_is_no_get_is_refused_as_get_is(server: Server) -> None:
    answer = server.http.head("/spleenseg/NIfTIinference/", params={"modelID": "demo"})

    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
