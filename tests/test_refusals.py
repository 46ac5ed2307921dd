"""Each refusal: its code, its form, and nothing left of the request."""

import gzip
from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import UPLOAD_LIMIT, Server, nifti_bytes
from tests.niftis import ct, nifti
from tests.refused import INFER, MODELPTH, check, refused
from tests.wire import FORM, Wire, form, part


@pytest.fixture(scope="module", autouse=True)
def _no_refusal_is_an_error_of_ours(server: Server, strict_server: Server) -> Iterator[None]:
    logs = {one.log: one.log.stat().st_size for one in (server, strict_server)}
    yield
    for log, size in logs.items():
        said = log.read_bytes()[size:]
        assert said
        assert b"Traceback" not in said
        assert b" ERROR " not in said


# --- the query -------------------------------------------------------------------------------

HOSTILE_IDS = [
    "../../x",
    "..",
    "a/b",
    "/etc/passwd",
    "",
    " ",
    "a b",
    ".hidden",
    "-rf",
    "a" * 129,
    "a" * 10_000,
    "a\0b",
    "a\n",
    "ä",
    "a\\b",
    "%2e%2e%2fx",
    "a;b",
    "\U0001f600",
]


@pytest.mark.parametrize("path", [INFER, MODELPTH])
@pytest.mark.parametrize("model_id", HOSTILE_IDS, ids=lambda text: repr(text[:12]))
def test_what_could_not_be_a_folder_is_not_a_model_id(
    server: Server, path: str, model_id: str
) -> None:
    around = set(server.workspace.parent.iterdir()) | set(server.workspace.iterdir())

    refused(
        server,
        422,
        "invalid-model-id",
        path,
        params={"modelID": model_id},
        files={"file": nifti_bytes()},
    )

    assert around == set(server.workspace.parent.iterdir()) | set(server.workspace.iterdir())


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("model_id", ["..", "%2e%2e", "a%00b", "a" * 10_000, "%20", "-x"])
def test_a_hostile_model_in_the_path_is_not_a_model(
    server: Server, method: str, model_id: str
) -> None:
    with Wire(server.url) as wire:  # a library would tidy the path up
        wire.head(method, f"/api/v1{MODELPTH}/{model_id}")
        answer = wire.answer(method)

    assert (answer.status, answer.json()["code"]) == (422, "invalid-model-id")
    assert server.http.get(MODELPTH).json() == {"models": ["demo"]}


@pytest.mark.parametrize("path", [INFER, MODELPTH])
def test_a_missing_model_id_has_a_code_of_its_own(server: Server, path: str) -> None:
    answer = server.http.post(path, files={"file": b"x"})
    check(answer, 422, "missing-model-id", server)


def test_a_model_that_is_not_there_is_404_in_every_call(server: Server) -> None:
    refused(server, 404, "model-not-found", params={"modelID": "none"}, files={"file": b"x"})
    for method in ("GET", "DELETE"):
        answer = server.http.request(method, f"{MODELPTH}/none")
        check(answer, 404, "model-not-found", server)


@pytest.mark.parametrize("resultant", ["", "mask", "LABELS", "labels\0"])
def test_a_resultant_that_there_is_not_is_an_invalid_parameter(
    server: Server, resultant: str
) -> None:
    refused(
        server,
        422,
        "invalid-parameter",
        params={"resultant": resultant},
        files={"file": nifti_bytes()},
    )


@pytest.mark.parametrize("key", ["", '""', "k" * 256])
def test_an_invalid_idempotency_key_is_an_invalid_parameter(server: Server, key: str) -> None:
    refused(
        server,
        422,
        "invalid-parameter",
        files={"file": nifti_bytes()},
        headers={"Idempotency-Key": key},
    )


def test_a_path_that_there_is_not_and_a_wrong_method_are_problems_too(server: Server) -> None:
    for path in ("/nothing", "/spleenseg", "/spleenseg/modelpth/a/b", f"{server.url}/nothing/"):
        check(server.http.get(path), 404, "not-found", server)
    answer = server.http.put(MODELPTH)
    check(answer, 405, "method-not-allowed", server)
    assert answer.headers["allow"] == "HEAD, GET, POST"


# --- the form --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [INFER, MODELPTH])
@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"content": b"bare bytes"},
        {"content": b"{}", "headers": {"Content-Type": "application/json"}},
        {"data": {"file": "urlencoded"}},
        {"files": {"nifti": b"x"}},
        {"files": {"file": b""}},
        {"content": form(), "headers": {"Content-Type": FORM}},
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": form(part(b"x", "form-data")), "headers": {"Content-Type": FORM}},
    ],
)
def test_a_body_without_the_field_is_missing_file(
    server: Server, path: str, request_: dict[str, Any]
) -> None:
    refused(server, 422, "missing-file", path, **request_)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary in it",
        form(part(nifti_bytes()))[:-40],
        form(part(nifti_bytes()))[:-4],
        form(part(b"x"), part(b"y")),
        form(part(b"x", more=f"X-Long: {'x' * 17_000}\r\n")),
        form(*[part(b"x", 'form-data; name="other"')] * 201),
        form(part(b"x", more="bad header\r\n")),
    ],
)
def test_a_broken_form_is_an_invalid_parameter(server: Server, body: bytes) -> None:
    refused(server, 422, "invalid-parameter", content=body, headers={"Content-Type": FORM})


def test_a_boundary_longer_than_the_rfc_allows_is_an_invalid_parameter(server: Server) -> None:
    kind = {"Content-Type": f"multipart/form-data; boundary={'a' * 300}"}
    refused(server, 422, "invalid-parameter", content=b"x", headers=kind)


# --- the volume ------------------------------------------------------------------------------

WHOLE = nifti(ct((20, 20, 24)))
VOLUMES: dict[str, tuple[str, bytes]] = {
    "text": ("not-a-nifti", b"this is no volume\n" * 100),
    "gzipped text": ("not-a-nifti", gzip.compress(b"this is no volume\n" * 100)),
    "a DICOM file": ("not-a-nifti", bytes(128) + b"DICM" + bytes(1000)),
    "a cut-off file": ("truncated-nifti", WHOLE[:-1]),
    "a cut-off gzip": ("truncated-nifti", gzip.compress(WHOLE)[:-20]),
    "a cut-off header": ("truncated-nifti", WHOLE[:200]),
    "a series": ("unsupported-nifti", nifti(ct((8, 8, 8, 2)))),
    "one slice": ("unsupported-nifti", nifti(ct((8, 8, 1)))),
    "colours": (
        "unsupported-nifti",
        nifti(np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
    ),
    "a NaN": ("unsupported-nifti", nifti(np.where(ct((8, 8, 8)) > 900, np.nan, 0.0))),
    "no spacing": ("unsupported-nifti", nifti(ct((8, 8, 8)), pixdim=0, sform_code=0)),
    "a singular affine": ("unsupported-nifti", nifti(ct((8, 8, 8)), srow_z=[0] * 4, qform_code=0)),
    "metres": ("unsupported-nifti", nifti(ct((20, 20, 24)), np.diag([900, 900, 900, 1]))),
    "more than its limit says": ("too-large", nifti(np.zeros((64, 64, 64), np.int16))),
    "a bomb": ("too-large", gzip.compress(WHOLE + bytes(2 << 20))),
}


@pytest.mark.parametrize(("code", "content"), VOLUMES.values(), ids=VOLUMES)
def test_a_volume_that_cannot_be_segmented_is_refused(
    strict_server: Server, code: str, content: bytes
) -> None:
    if len(content) > UPLOAD_LIMIT:
        content = gzip.compress(content)
    refused(strict_server, 413 if code == "too-large" else 422, code, files={"file": content})


def test_logits_of_too_few_slices_are_refused_before_the_run(server: Server) -> None:
    thin = nifti_bytes((24, 24, 20))

    detail = refused(
        server, 422, "unsupported-nifti", params={"resultant": "logits"}, files={"file": thin}
    )

    assert "20 slices" in detail


def test_a_file_that_is_not_a_model_is_refused_and_not_stored(server: Server) -> None:
    refused(
        server,
        422,
        "not-a-model",
        MODELPTH,
        params={"modelID": "text"},
        files={"file": b"this is no model\n" * 50},
        timeout=120,
    )


def test_the_volume_of_the_tests_is_accepted(strict_server: Server) -> None:
    """Otherwise the refusals above could have another reason."""
    answer = strict_server.infer(gzip.compress(WHOLE))

    assert answer.status_code == 200, answer.text
    labels = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert labels.shape == (20, 20, 24)
