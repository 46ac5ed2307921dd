"""Requests that a proxy and a server might read differently, or that ask for a name not theirs."""

from collections.abc import Iterator
from urllib.parse import quote

from tests.refused import BODY, TARGET
from tests.wire import FORM, form, part

_POST = f"POST {TARGET} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\n".encode()
_HIDDEN = b"DELETE /api/v1/spleenseg/modelpth/demo HTTP/1.1\r\nHost: localhost\r\n\r\n"
_CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)
_WHOLE = b"0\r\n\r\n"


def _posted(headers: bytes, body: bytes) -> bytes:
    return _POST + headers + b"\r\n\r\n" + body + _HIDDEN


def _chunked(body: bytes, header: bytes = b"Transfer-Encoding: chunked") -> bytes:
    return _posted(header, body)


_LENGTH = b"Content-Length: %d" % len(BODY)

# Each hides a second request, which removes the model, behind a doubtful end of the first.
REQUESTS: dict[str, bytes] = {
    "CL and TE": _posted(b"Content-Length: 5\r\nTransfer-Encoding: chunked", _CHUNK + _WHOLE),
    "TE and CL": _posted(b"Transfer-Encoding: chunked\r\nContent-Length: 5", _CHUNK + _WHOLE),
    "CL 0 and TE": _posted(b"Content-Length: 0\r\nTransfer-Encoding: chunked", _CHUNK + _WHOLE),
    "two CLs": _posted(_LENGTH + b"\r\nContent-Length: 5", BODY),
    "two CLs, the first short": _posted(b"Content-Length: 5\r\n" + _LENGTH, BODY),
    "CLs in a list": _posted(_LENGTH + b", 5", BODY),
    "CL with a sign": _posted(b"Content-Length: +5", BODY),
    "CL of a negative number": _posted(b"Content-Length: -1", BODY),
    "CL in hex": _posted(b"Content-Length: 0x5", BODY),
    "CL with a space in it": _posted(b"Content-Length: 5 5", BODY),
    "CL beyond 64 bits": _posted(b"Content-Length: 18446744073709551621", BODY),
    "CL with a space before its colon": _posted(b"Content-Length : 5", BODY),
    "CL with a tab before its colon": _posted(b"Content-Length\t: 5", BODY),
    "CL folded": _posted(b"Content-Length:\r\n 5", BODY),
    "TE folded": _chunked(_CHUNK + _WHOLE, b"Transfer-Encoding:\r\n chunked"),
    "a header folded": _posted(_LENGTH + b"\r\nX-A: b\r\n Transfer-Encoding: chunked", BODY),
    "TE with a space before its colon": _chunked(_CHUNK, b"Transfer-Encoding : chunked"),
    "TE behind a bare LF": _chunked(_CHUNK, b"X: y\nTransfer-Encoding: chunked"),
    "TE behind a bare CR": _chunked(_CHUNK, b"X: y\rTransfer-Encoding: chunked"),
    "TE xchunked": _chunked(_CHUNK + _WHOLE, b"Transfer-Encoding: xchunked"),
    "TE chunked twice": _chunked(_CHUNK + _WHOLE, b"Transfer-Encoding: chunked, chunked"),
    "TE identity": _chunked(_CHUNK + _WHOLE, b"Transfer-Encoding: identity"),
    "TE not at the end": _chunked(_CHUNK + _WHOLE, b"Transfer-Encoding: chunked, identity"),
    "TE with a vertical tab": _chunked(_CHUNK + _WHOLE, b"Transfer-Encoding: \x0bchunked"),
    "TE with NUL": _chunked(_CHUNK + _WHOLE, b"Transfer-Encoding: chunked\0"),
    "TE in two headers": _chunked(_CHUNK, b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked"),
    "TE in HTTP/1.0": _chunked(_CHUNK + _WHOLE).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "a chunk of no size": _chunked(b"\r\n" + BODY),
    "a chunk of a negative size": _chunked(b"-1\r\n" + BODY),
    "a chunk of a signed size": _chunked(b"+5\r\nhello\r\n" + _WHOLE),
    "a chunk of 0x": _chunked(b"0x5\r\nhello\r\n" + _WHOLE),
    "a chunk beyond 64 bits": _chunked(b"1" + b"0" * 16 + b"5\r\nhello\r\n" + _WHOLE),
    "a chunk of spaces": _chunked(b" 5\r\nhello\r\n" + _WHOLE),
    "a chunk longer than it says": _chunked(b"5\r\nhello, you\r\n" + _WHOLE),
    "a chunk that ends in LF": _chunked(b"5\nhello\n0\n\n"),
    "a chunk that ends in CR": _chunked(b"5\rhello\r0\r\r"),
    "a chunk's extension without end": _POST
    + b"Transfer-Encoding: chunked\r\n\r\n5;%s\r\nhello\r\n0\r\n\r\n" % (b"a" * 200_000),
    "a chunk's extension with LF": _chunked(b"5;a=b\nhello\r\n" + _WHOLE),
    "trailers without end": _chunked(_CHUNK + b"0\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n"),
    "two hosts": _POST + _LENGTH + b"\r\nHost: evil.example\r\n\r\n" + BODY,
    "no host": b"GET /api/v1/about HTTP/1.1\r\n\r\n",
    "a host in the target": b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a host of another": b"GET /api/v1/about HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "a header without a name": b"GET /api/v1/about HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n",
    "a header with NUL": b"GET /api/v1/about HTTP/1.1\r\nHost: localhost\r\nX: \0\r\n\r\n",
    "a space before the first header": b"GET /api/v1/about HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "HTTP/0.9": b"GET /api/v1/about\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(517),
    "nothing but NUL": bytes(100_000),
    "a method without end": b"A" * 100_000,
    "a target without end": b"GET /" + b"a" * 200_000,
    "a target with spaces": b"GET /api/v1/about /etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target with CR LF": b"GET /api/v1/about%0d%0aX:%20y HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT": b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "10,000 headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    **{
        f"a form: {name}": _POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
        for name, body in {
            "201 parts": form(*[part(b"x", 'form-data; name="x"')] * 201),
            "headers without end": form(part(b"x", more="X: " + "y" * 100_000 + "\r\n")),
            "10,000 headers": form(part(b"x", more="X: y\r\n" * 10_000)),
            "a part in a part": form(part(form(part(b"x")))),
            "boundaries without end": b"\r\n--the-boundar" * 50_000,
            "two files": form(part(b"x"), part(b"y")),
            "a header without a colon": form(part(b"x", more="no colon\r\n")),
            "a disposition without end": form(part(b"x", "form-data; " + "a=b; " * 2_500)),
        }.items()
    },
}

_NAMES = (
    *("..", ".", "../..", "../../../etc/passwd", "..\\..\\windows", "/etc/passwd", "demo/../demo"),
    *("....//....//", "%2e%2e/", "%252e%252e%252f", "..%c0%af", "..%ef%bc%8f", "\0", "demo\0.pth"),
    *("demo\n", "demo\r\nX: y", "-rf", "--help", ".removed-x", "~", "$HOME", "$(touch x)", "`id`"),
    *(
        "a" * 129,
        "a" * 4000,
        "con",
        "model.pth",
        "\N{FULLWIDTH FULL STOP}" * 2,
        "demo;rm",
        "*",
        "?",
    ),
    *("file:///etc/passwd", "http://127.0.0.1:9/", "\N{RIGHT-TO-LEFT OVERRIDE}omed", "' OR 1=1 --"),
)


def with_names() -> Iterator[tuple[str, bytes]]:
    """GET, PUT, POST and DELETE with each name, wherever a call takes one."""
    routes = (
        *("GET /api/v1/spleenseg/modelpth/{}", "DELETE /api/v1/spleenseg/modelpth/{}"),
        *("GET /api/v1/jobs/{}", "GET /api/v1/jobs/{}/log", "GET /api/v1/jobs/{}/bundle"),
        *("GET /api/v1/jobs/{}/result", "POST /api/v1/jobs/{}/cancel", "DELETE /api/v1/jobs/{}"),
        *("PUT /api/v1/spleenseg/inference/device/{}", "GET /docs/try/{}", "GET /docs/errors/{}"),
    )
    for name in _NAMES:
        for route in routes:
            for text in {quote(name, safe=""), quote(name, safe="/.%")}:
                target = route.format(text or ".")
                yield f"{target[:80]}", _request(target)
        named = quote(name, safe="")
        yield f"model {name[:30]!r}", _with_body(f"POST /api/v1/spleenseg/modelpth?modelID={named}")
        infer = "POST /api/v1/spleenseg/NIfTIinference"
        yield f"volume for {name[:30]!r}", _with_body(f"{infer}?modelID={named}")
        yield f"resultant {name[:30]!r}", _with_body(f"{infer}?modelID=demo&resultant={named}")


def file_names() -> Iterator[tuple[str, bytes]]:
    """A good volume whose file has such a name; it is of no importance."""
    for name in _NAMES[::4]:
        tame = name.encode().replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
        head = (
            b'--the-boundary\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n'
        )
        content = BODY.partition(b"\r\n\r\n")[2]
        body = head % tame + content
        length = b"Content-Length: %d\r\nPrefer: respond-async\r\n\r\n" % len(body)
        yield f"a file named {name[:30]!r}", _POST + length + body


def ranges() -> Iterator[tuple[str, str]]:
    """What `Range` may say, a thousand times over."""
    yield "a thousand ranges", "bytes=" + ",".join(f"{n}-{n}" for n in range(1000))
    yield "a thousand whole ranges", "bytes=" + ",".join(["0-"] * 1000)
    yield "a thousand suffixes", "bytes=" + ",".join(f"-{n}" for n in range(1, 1001))
    yield "ten thousand commas", "bytes=0-0" + "," * 10_000
    yield "a range of 2**64", f"bytes={2**64}-{2**65}"
    yield "a range backwards", "bytes=5-1"
    yield "an unknown unit", "voxels=0-1"


def _request(line: str) -> bytes:
    return f"{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def _with_body(line: str) -> bytes:
    body = form(part(b"neither volume nor weights"))
    head = f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\n"
    return f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
