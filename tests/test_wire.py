"""HTTP as clients of every kind speak it: over raw connections, cut where it hurts."""

from contextlib import suppress

import psutil
import pytest

from pfms.errors import InvalidParameter
from tests.conftest import Server, eventually
from tests.refused import INFER, MODELPTH, TARGET, is_problem, jobs_made, request
from tests.wire import FORM, Wire, form, part

ABOUT = "/api/v1/about"

# --- Upgrade -----------------------------------------------------------------------------------

UPGRADES = [
    {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIA"},
    {"Connection": "upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
    {"Upgrade": "TLS/1.0", "Connection": "Upgrade"},
    {"Connection": "keep-alive, Upgrade", "upgrade": "something/7, else"},
]


@pytest.mark.parametrize("upgrade", UPGRADES, ids=lambda u: str(u.get("Upgrade")))
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_request_to_upgrade_is_answered_as_http_1_1(
    server: Server, upgrade: dict[str, str], chunked: bool
) -> None:
    with Wire(server.url) as wire:
        for _ in range(2):
            wire.send(request(upgrade, chunked=chunked))
            assert wire.answer().status == 200
            wire.send(request(upgrade, method="GET", target=ABOUT, body=b""))
            answer = wire.answer("GET")
            assert (answer.status, answer.json()["name"]) == (200, "pfms")
        wire.send(request())
        assert wire.answer().status == 200


def test_a_request_to_upgrade_is_read_wherever_its_packets_end(server: Server) -> None:
    body = form(part(b"no volume"))
    whole = request(UPGRADES[0], body=body)
    head = whole.index(b"\r\n\r\n")
    places = [*range(60, head + 8, 3), head + 1, head + 2, head + 3, head + 4, len(whole) - 1]
    with Wire(server.url) as wire:
        for place in places:
            wire.send(whole[:place])
            wire.send(whole[place:])
            is_problem(wire.answer(), 422, "not-a-nifti")
        for byte in whole:
            wire.send(bytes([byte]))
        is_problem(wire.answer(), 422, "not-a-nifti")
        wire.send(whole * 3)  # pipelined
        for _ in range(3):
            is_problem(wire.answer(), 422, "not-a-nifti")


def test_a_body_that_is_waited_for_with_100_continue_may_ask_for_an_upgrade(server: Server) -> None:
    head, _, body = request({**UPGRADES[0], "Expect": "100-continue"}).partition(b"\r\n\r\n")
    with Wire(server.url) as wire:
        wire.send(head + b"\r\n\r\n")
        assert wire.line() == "HTTP/1.1 100 Continue"
        wire.send(body)
        assert wire.answer().status == 200


# --- what is not HTTP --------------------------------------------------------------------------

POST = (
    b"POST "
    + TARGET.encode()
    + b" HTTP/1.1\r\nHost: [::1]\r\nContent-Type: "
    + FORM.encode()
    + b"\r\n"
)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BROKEN = {
    "a raw byte in the query": b"GET /api/v1/jobs?state=\xc3\xa4 HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "a raw byte in the path": b"GET /api/v1/\xff HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "a space in the query": b"GET /api/v1/jobs?modelID=a b HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "no method": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "an unknown method": b"FETCH / HTTP/1.1\r\n\r\n",
    "CONNECT": b"CONNECT pfms.test:80 HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "HTTP/2 by prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /\r\nHost: [::1]\r\n\r\n",
    "a version there is not": b"GET / HTTP/1.9\r\n\r\n",
    "no path in the URL": b"GET http://pfms.test HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "a raw byte in a header's name": b"GET / HTTP/1.1\r\nX\xe4: y\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nX : y\r\n\r\n",
    "a NUL in a header": b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nX: y\r\n z\r\n\r\n",
    "LF alone": b"GET / HTTP/1.1\nHost: [::1]\n\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
    "a transfer coding alone": POST + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "a chunk of no size": POST + b"Transfer-Encoding: chunked\r\n\r\nsize\r\nhello",
    "a chunk of a negative size": POST + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello",
    "a chunk that is longer": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello, world",
    "chunks of little": CHUNKED + (b"1;" + b"x" * 8000 + b"\r\ny\r\n") * 500,
}
TOO_LARGE = {
    "large headers": b"GET / HTTP/1.1\r\n" + (b"X: " + b"y" * 1000 + b"\r\n") * 66 + b"\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 201 + b"\r\n",
    "a long header": b"GET / HTTP/1.1\r\nX: " + b"y" * (4 << 20),
    "a long name": b"GET / HTTP/1.1\r\n" + b"y" * (4 << 20),
    "a long URL": b"GET /" + b"y" * (4 << 20),
    "a URL above 64 KiB": b"GET /" + b"y" * 66_000 + b" HTTP/1.1\r\n\r\n",
    "line breaks only": b"\r\n" * (1 << 20),
    "a chunk's extension": CHUNKED + b"5;" + b"x" * (4 << 20),
    "a trailer": CHUNKED + b"0\r\nX: " + b"x" * (4 << 20),
    "many trailers": CHUNKED + b"0\r\n" + b"X: y\r\n" * 201 + b"\r\n",
}
for length in (
    "9" * 5000,
    "-5",
    "+5",
    "1_000",
    "\xb2",
    "5, 5",
    "",
    "0x10",
    "1e3",
    "5 5",
    str(2**64),
):
    name = f"Content-Length: {length[:8]}"
    BROKEN[name] = POST + f"Content-Length: {length}\r\n\r\n".encode("latin-1") + b"hello"


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_not_http_gets_a_problem_document(server: Server, content: bytes) -> None:
    before = jobs_made(server)
    with Wire(server.url) as wire:
        with suppress(OSError):  # where it has been refused already
            wire.send(content)
        answer = wire.answer()
        assert wire.ends() == b""

    problem = is_problem(answer, 400, "invalid-parameter")
    assert problem["remedy"] != InvalidParameter.remedy
    assert answer.headers["connection"] == "close"
    assert jobs_made(server) == before


@pytest.mark.parametrize("content", TOO_LARGE.values(), ids=TOO_LARGE)
def test_more_headers_than_anyone_needs_are_refused(server: Server, content: bytes) -> None:
    before = jobs_made(server)
    with Wire(server.url) as wire:
        with suppress(OSError):
            wire.send(content)
        answer = wire.answer()
        assert wire.ends() == b""

    is_problem(answer, 431, "headers-too-large")
    assert answer.headers["connection"] == "close"
    assert jobs_made(server) == before


@pytest.mark.parametrize("piece", [b"y" * (1 << 20), b"X: yyy\r\n" * 100_000], ids=["one", "many"])
def test_headers_without_end_are_not_kept_in_memory(server: Server, piece: bytes) -> None:
    process = psutil.Process(server.process.pid)

    def memory_after(pieces: int) -> int:
        with Wire(server.url) as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
            with suppress(OSError):
                for _ in range(pieces):
                    wire.send(piece)
            is_problem(wire.answer(), 431, "headers-too-large")
        size: int = process.memory_info().rss
        return size

    before = memory_after(1)
    assert memory_after(64) - before < 1 << 20


def test_two_hundred_headers_are_read(server: Server) -> None:
    with Wire(server.url) as wire:
        head = b"GET /api/v1/about HTTP/1.1\r\nHost: localhost\r\n"
        wire.send(head + b"X: y\r\n" * 199 + b"\r\n")
        assert wire.answer("GET").status == 200


@pytest.mark.parametrize("length", ["0" * 5000, "0" * 5000 + "5"])
def test_a_length_with_many_zeros_is_a_length(server: Server, length: str) -> None:
    with Wire(server.url) as wire:
        wire.send(POST + f"Content-Length: {length}\r\n\r\nhello".encode())
        is_problem(wire.answer(), 422, "invalid-parameter")


def test_a_length_of_nineteen_digits_is_too_large(server: Server) -> None:
    with Wire(server.url) as wire:
        wire.send(POST + f"Content-Length: {2**64 - 1}\r\n\r\nhello".encode())
        is_problem(wire.answer(), 413, "too-large")


def test_bytes_above_0x7f_in_a_header_never_cause_an_internal_error(server: Server) -> None:
    names = ("Idempotency-Key", "Prefer", "Origin", "Content-Type", "Range", "Accept", "User-Agent")
    for name in (*names, "Content-Encoding", "Expect", "Connection", "Referer", "If-None-Match"):
        for value in (b"\xe4\xff", b"\xc3\xa4\x80; q=\xb2"):
            for target in (b"POST " + TARGET.encode(), b"GET /api/v1/jobs"):
                with Wire(server.url) as wire:
                    head = b" HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 0\r\n"
                    wire.send(target + head + name.encode() + b": " + value + b"\r\n\r\n")
                    answer = wire.answer()
                assert answer.status < 500, (name, value, answer.body)


def test_a_fault_after_a_complete_request_does_not_cost_it_its_response(server: Server) -> None:
    with Wire(server.url) as wire:
        wire.send(request() + b"\x00\x01 what is this\r\n\r\n")
        assert wire.answer().status == 200
        assert wire.ends() == b""


def test_a_bad_chunk_in_the_middle_leaves_nothing(server: Server) -> None:
    before = jobs_made(server)
    piece = part(bytes(2_000_000))
    with Wire(server.url) as wire:
        wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        wire.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        eventually(lambda: [p for p in server.uploads() if p.stat().st_size > 1_000_000])
        wire.send(b"what?\r\n")
        is_problem(wire.answer(), 400, "invalid-parameter")

    assert jobs_made(server) == before


# --- codings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [INFER, MODELPTH])
@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("Content_Encoding", "gzip"),
        ("Content_Encoding", "Identity, br"),
        ("Content_Encoding", "x-unknown"),
        ("Transfer_Encoding", "gzip, chunked"),
    ],
)
def test_a_coding_of_the_body_is_refused_before_the_body_arrives(
    server: Server, path: str, header: str, coding: str
) -> None:
    with Wire(server.url) as wire:
        headers = {"Content_Type": FORM, header: coding}
        if header == "Content_Encoding":
            headers["Content_Length"] = "1000000"
        wire.head("POST", f"/api/v1{path}?modelID=demo", **headers)
        answer = wire.answer()

    problem = is_problem(answer, 415, "unsupported-coding")
    assert coding.lower().split(", ")[-1].split(",")[0] in problem["detail"] or "gzip" in coding
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_identity_is_not_a_coding(server: Server, coding: str) -> None:
    with Wire(server.url) as wire:
        wire.send(request({"Content-Encoding": coding}))
        assert wire.answer().status == 200


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("multipart/form-data", "names no boundary"),
        ("application/x-www-form-urlencoded", "--data-binary"),
        ("application/json", "sent as application/json"),
        ("application/octet-stream", "sent as application/octet-stream"),
        ("multipart/mixed; boundary=x", "sent as multipart/mixed"),
        ("", "no Content-Type"),
    ],
)
def test_the_refusal_of_a_body_that_is_not_a_form_says_what_it_is(
    server: Server, kind: str, reason: str
) -> None:
    with Wire(server.url) as wire:
        wire.head("POST", TARGET, Content_Type=kind, Content_Length=100_000)
        assert reason in is_problem(wire.answer(), 422, "missing-file")["detail"]


def test_the_refusal_of_a_request_without_a_body_says_so(server: Server) -> None:
    with Wire(server.url) as wire:
        wire.head("POST", TARGET)
        assert "no body" in is_problem(wire.answer(), 422, "missing-file")["detail"]


# --- refusals that are read ----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_sends_on_and_then_closes_still_reads_its_refusal(
    server: Server, version: str
) -> None:
    """Closed at once, the kernel resets the connection and the answer is lost."""
    length = 40_000_000
    with Wire(server.url) as wire:
        head = f"POST /api/v1{INFER}?modelID=none HTTP/{version}\r\nHost: [::1]\r\n"
        head += "Connection: close\r\n"
        wire.send(f"{head}Content-Type: {FORM}\r\nContent-Length: {length}\r\n\r\n".encode())
        for _ in range(length // 1_000_000):
            wire.send(bytes(1_000_000))
        is_problem(wire.answer(), 404, "model-not-found")
        assert wire.ends() == b""
