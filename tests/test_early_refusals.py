"""Refusals as early as possible: before or while the body arrives; and clients that go away."""

import pytest

from tests.conftest import UPLOAD_LIMIT, Server, eventually, nifti_bytes
from tests.refused import INFER, MODELPTH, files_of, refused
from tests.wire import FORM, Answer, Wire, form, part

# --- early -----------------------------------------------------------------------------------


def answer_to_the_head(server: Server, target: str, length: int, kind: str = FORM) -> Answer:
    """The response to a request whose body never arrives."""
    with Wire(server.url) as wire:
        wire.head("POST", f"/api/v1{target}", Content_Type=kind, Content_Length=length)
        return wire.answer()


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        (f"{INFER}?modelID=none", 404, "model-not-found"),
        (f"{INFER}/?modelID=..%2F..%2Fx", 422, "invalid-model-id"),
        (INFER, 422, "missing-model-id"),
        (f"{INFER}?modelID=demo&resultant=x", 422, "invalid-parameter"),
        (f"{MODELPTH}?modelID=a%00b", 422, "invalid-model-id"),
        (MODELPTH, 422, "missing-model-id"),
    ],
)
def test_a_wrong_query_is_refused_before_the_body_arrives(
    server: Server, target: str, status: int, code: str
) -> None:
    answer = answer_to_the_head(server, target, 1_000_000)

    assert (answer.status, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", [INFER, MODELPTH])
def test_a_body_that_announces_too_great_a_length_is_refused_before_it_arrives(
    strict_server: Server, path: str
) -> None:
    answer = answer_to_the_head(strict_server, f"{path}?modelID=demo", UPLOAD_LIMIT + (2 << 20))

    assert (answer.status, answer.json()["code"]) == (413, "too-large")


@pytest.mark.parametrize("path", [INFER, MODELPTH])
def test_a_body_that_is_not_a_form_is_refused_before_it_arrives(server: Server, path: str) -> None:
    answer = answer_to_the_head(server, f"{path}?modelID=demo", 1_000_000, "application/nifti")

    assert (answer.status, answer.json()["code"]) == (422, "missing-file")


def test_a_client_that_waits_for_100_continue_is_refused_instead(server: Server) -> None:
    with Wire(server.url) as wire:
        wire.head(
            "POST",
            f"/api/v1{INFER}?modelID=none",
            Content_Type=FORM,
            Content_Length=1_000_000,
            Expect="100-continue",
        )
        assert wire.answer().status == 404


# --- on the way ------------------------------------------------------------------------------


def test_a_file_that_is_too_large_is_refused_while_it_arrives(strict_server: Server) -> None:
    refused(strict_server, 413, "too-large", files={"file": bytes(UPLOAD_LIMIT + 1)})


def test_a_file_of_exactly_the_limit_is_checked(strict_server: Server) -> None:
    refused(strict_server, 422, "not-a-nifti", files={"file": bytes(UPLOAD_LIMIT)})


@pytest.mark.parametrize("field", ["file", "other"])
def test_a_stream_without_end_is_refused_on_its_way(strict_server: Server, field: str) -> None:
    """In chunks, so that its length is unknown; the response comes before it has ended."""
    before = files_of(strict_server)
    start_of_it = part(b"", f'form-data; name="{field}"').removesuffix(b"\r\n")
    with Wire(strict_server.url) as wire:
        wire.head(
            "POST", f"/api/v1{INFER}?modelID=demo", Content_Type=FORM, Transfer_Encoding="chunked"
        )
        for piece in (start_of_it, *[bytes(100_000)] * 12):
            wire.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        answer = wire.answer()

    assert (answer.status, answer.json()["code"]) == (413, "too-large")
    assert files_of(strict_server) == before


@pytest.mark.parametrize("path", [INFER, MODELPTH])
def test_nothing_is_left_of_a_client_that_goes_away_in_its_upload(
    server: Server, path: str
) -> None:
    before, jobs = files_of(server), server.http.get("/jobs").json()
    with Wire(server.url) as wire:
        wire.head(
            "POST", f"/api/v1{path}?modelID=demo", Content_Type=FORM, Content_Length=9_000_000
        )
        wire.send(part(bytes(3_000_000)))
        eventually(lambda: [p for p in server.uploads() if p.stat().st_size > 1_000_000])
        log = server.log.stat().st_size

    eventually(lambda: files_of(server) == before)
    assert server.http.get("/jobs").json() == jobs
    with server.log.open("rb") as file:
        file.seek(log)
        said = file.read().decode()
    assert "the client went away" in said
    assert "Traceback" not in said


def test_a_refusal_leaves_the_connection_of_use(server: Server) -> None:
    with Wire(server.url) as wire:
        body = form(part(nifti_bytes()))
        for model_id, status in (("none", 404), ("demo", 200)):
            wire.head(
                "POST",
                f"/api/v1{INFER}?modelID={model_id}",
                Content_Type=FORM,
                Content_Length=len(body),
            )
            wire.send(body)
            assert wire.answer().status == status
