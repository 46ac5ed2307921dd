"""No header and no query makes a fault of ours: every route, with values that no client means."""

import http.client
import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Server, seed_model, start
from tests.wire import FORM, Wire, form, part

MANY_DIGITS = "9" * 5000
ODD: tuple[str, ...] = (
    *("", " ", "\t", ",", ";", "=", '"', "'", "\\", "*", "-", "0", "-1", "null", "none", "%", "["),
    *("http://[", "http://[::1", "https://a:b", "a://", "//", "://", "http://a@b", "[::", "]"),
    *(
        "\x80",
        "\xff" * 3,
        "\xc3\xa4",
        "\xed\xa0\x80",
        "\xf0\x9f\x98\x80",
        "ä" * 300,
        "\xb2",
        "\xb9",
    ),
    *(MANY_DIGITS, f"-{MANY_DIGITS}", f"0x{MANY_DIGITS}", "1e999", "NaN", "1_0"),
    *("a" * 20_000, "a," * 3000, "a=b;" * 3000, '"' * 3000, "(" * 3000, "../" * 50, "%00", "%ff"),
    *("W/", 'W/"', '"a', "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-1", "bytes=0-0,-1"),
    *(f"bytes={MANY_DIGITS}-", f"bytes=-{MANY_DIGITS}", "bytes=0-" + ",0-" * 900, "bytes=\xb2-"),
    *("Thu, 99 Foo 2026 99:99:99 GMT", "Mon, 01 Jan 0000 00:00:00 GMT", "utf-8''%ff", "gzip"),
    *("wait=", "wait=-1", "wait=\xb2", "wait=1.5", 'wait="1', f"wait={MANY_DIGITS}"),
    *("respond-async;" + "x;" * 900, "respond-async,,;", "chunked, x", "text/plain; charset=\xff"),
    *("application/json; charset=none", "a/b; c*=x", "multipart/form-data"),
    *(
        f"multipart/form-data; boundary{rest}"
        for rest in ("", "=", '="', f"={'b' * 5000}", "=\xff", "*=utf-8''%ff%fe", "*=x'y'%zz")
    ),
    "multipart/form-data; boundary*0=a; boundary*1=b",
)
HEADERS = (
    *("Origin", "Host", "Content-Length", "Content-Type", "Content-Encoding", "Range", "If-Range"),
    *("If-None-Match", "If-Match", "If-Modified-Since", "If-Unmodified-Since", "Prefer", "Cookie"),
    *("Idempotency-Key", "Last-Event-ID", "Accept", "Accept-Encoding", "Accept-Language"),
    *("Authorization", "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"),
    *("X-Forwarded-Prefix", "X-Real-IP", "Expect", "Transfer-Encoding", "TE", "Trailer", "Upgrade"),
    *("Connection", "HTTP2-Settings", "Sec-WebSocket-Key", "Sec-Fetch-Site", "Sec-Fetch-Mode"),
    *("Access-Control-Request-Method", "Access-Control-Request-Headers", "Referer", "User-Agent"),
    *("Access-Control-Request-Private-Network", "X-HTTP-Method-Override", "Traceparent", "Via"),
)
ODD_QUERIES = (
    *("modelID=%ff", "modelID=%ED%A0%80", "modelID=%00", "modelID=%", "modelID=%zz", "&&&", "="),
    *("modelID=demo&modelID=x", f"limit={MANY_DIGITS}", f"limit=-{MANY_DIGITS}", "limit=1e3"),
    *("limit=%D9%A3", "cursor=%ff%fe", "cursor=%00", f"cursor={MANY_DIGITS}", "limit=1&limit=2"),
    *("cursor=MDA", "cursor=e30%3D", "cursor=W10%3D", "cursor=bnVsbA%3D%3D", "cursor=%7B%22", "%"),
    *("state=%ff", "state=queued&state=running", "resultant=%ff", "voxels=%ff", "purge=%ff"),
    *("echoBack=%ED%A0%80", "modelID=" + "a" * 20_000, "modelID[]=demo", "a=b;c=d"),
    *("resultant=labels%00", "cursor=" + "a" * 199),
)
LENGTHS = (
    *(MANY_DIGITS, f"-{MANY_DIGITS}", "0" * 5000 + "9", "9" * 4301, "9" * 18, "+5", "", "\xb2"),
    *("1,1", "0x1", "1 1", "gzip", "chunked, gzip"),
)
FRAMING = {"Content-Length", "Transfer-Encoding"}  # may announce a body that never arrives
PATIENCE = 10  # seconds
QUICK, MANY = 500, 20_000  # requests


def head_of(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def check(server: Server, method: str, path: str, odd: dict[str, str]) -> None:
    """Send a request with these headers; whatever the answer, it is not a fault of ours."""
    body = form(part(b"no volume")) if method in ("POST", "PUT") else b""
    usual = {"Host": "localhost", "Connection": "close"}
    if body:
        usual |= {"Content-Type": FORM, "Content-Length": str(len(body))}
    sent = head_of(method, path, usual | odd)
    with Wire(server.url, seconds=PATIENCE) as wire:
        try:
            wire.send(sent + body)
            status, content, code = answer_of(wire, method)
        except (ConnectionError, http.client.BadStatusLine, http.client.IncompleteRead):
            return  # what came was no request to the server, and it hung up
        except TimeoutError:
            # It waits for the rest of a body that the headers promised.
            assert odd.keys() & {*FRAMING, "Upgrade", "Expect"}, sent
            return
    assert code != "internal", (sent[:300], content)
    assert status < 500 or code is not None, (sent[:300], content)


def answer_of(wire: Wire, method: str) -> tuple[int, bytes, Any]:
    answer = wire.answer(method)
    problem = answer.headers.get("Content-Type") == "application/problem+json"
    code = answer.json()["code"] if problem and answer.body else None
    return answer.status, answer.body, code


@pytest.fixture(scope="module")
def odd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    workspace = tmp_path_factory.mktemp("odd") / "workspace"
    seed_model(workspace)
    one = start(workspace, "empty.py", cors_origins="https://viewer.test", max_upload_bytes=100_000)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def routes(odd_server: Server) -> list[tuple[str, str]]:
    """Every call of the document, on a job and a model that are there."""
    job = odd_server.ended(odd_server.submit())["id"]
    document = odd_server.http.get(f"{odd_server.url}/openapi.json").json()
    names = {"job_id": job, "modelID": "demo", "device": "cpu"}
    found = [
        (method.upper(), path.format(**names) + ("?modelID=demo" if method == "post" else ""))
        for path, methods in document["paths"].items()
        for method in methods
        if method != "delete"  # what the others need
    ]
    found += [("OPTIONS", "/api/v1/jobs"), ("HEAD", f"/api/v1/jobs/{job}/result")]
    found += [("DELETE", "/api/v1/jobs/none"), ("GET", "/docs"), ("GET", "/nothing")]
    return found


def one_by_one(routes: list[tuple[str, str]]) -> Iterator[tuple[str, str, dict[str, str]]]:
    for (method, path), name, value in itertools.product(routes, HEADERS, ODD):
        if name not in FRAMING:
            yield method, path, {name: value}


def finish(server: Server) -> None:
    """It goes on, and had no trouble that the answers did not show."""
    assert server.http.get(f"{server.url}/health/ready").status_code == 200
    said = server.log.read_text()
    os.truncate(server.log, 0)
    assert "Traceback" not in said, said[said.index("Traceback") :]


def check_some(
    server: Server, routes: list[tuple[str, str]], chosen: random.Random, count: int
) -> None:
    """Odd headers one by one, then several at once."""
    for method, path, headers in chosen.sample(list(one_by_one(routes)), count):
        check(server, method, path, headers)
    for _ in range(count // 4):
        method, path = chosen.choice(routes)
        names = set(chosen.sample(HEADERS, 6)) - FRAMING
        check(server, method, path, {name: chosen.choice(ODD) for name in sorted(names)})
    finish(server)


def test_no_odd_header_causes_an_internal_error(
    odd_server: Server, routes: list[tuple[str, str]]
) -> None:
    check_some(odd_server, routes, random.Random(1), QUICK)


@pytest.mark.parametrize("value", LENGTHS)
@pytest.mark.parametrize("name", sorted(FRAMING))
def test_no_odd_framing_causes_an_internal_error(
    odd_server: Server, routes: list[tuple[str, str]], name: str, value: str
) -> None:
    for method, path in routes:
        if method in ("POST", "PUT"):
            check(odd_server, method, path, {name: value})
    finish(odd_server)


@pytest.mark.parametrize("query", ODD_QUERIES)
def test_no_odd_query_causes_an_internal_error(
    odd_server: Server, routes: list[tuple[str, str]], query: str
) -> None:
    for method, path in routes:
        check(odd_server, method, f"{path.partition('?')[0]}?{query}", {})
    finish(odd_server)


@pytest.mark.every
@pytest.mark.timeout(3600)
def test_no_odd_header_among_many_causes_an_internal_error(
    odd_server: Server, routes: list[tuple[str, str]]
) -> None:
    check_some(odd_server, routes, random.Random(), MANY)
