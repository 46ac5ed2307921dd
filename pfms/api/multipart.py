"""Streams the field `file` of a multipart body straight to its place, with no second copy."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header

from pfms.api.outgoing import SLOW_BYTES
from pfms.api.parts import Part, Splitter
from pfms.errors import InvalidParameter, MissingFile, RequestTimeout, TooLarge, UnsupportedCoding
from pfms.storage.upload import Upload, UploadWriter

_OTHERS_LIMIT = 1 << 20  # bytes of headers and other fields that are skipped
_TEXT_LIMIT = 1024  # bytes; a longer field is not a file's name sent as text
_AS_IT_IS = (b"", b"7bit", b"8bit", b"binary")

OPENAPI_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


def check_body(request: Request, limit: int) -> bytes:
    """Refuse what can be refused before the body is read; return the form's boundary.

    Args:
        request: Only its headers are used.
        limit: The most bytes that the file may have.

    Raises:
        UnsupportedCoding: The whole body is compressed.
        MissingFile: The body is not a multipart form.
        TooLarge: Content-Length is already above the limit.
    """
    _check_codings(request)
    boundary = _boundary(request)
    length = announced_size(request)
    if length is not None and length > limit + _OTHERS_LIMIT:
        raise TooLarge(f"The request has {length} bytes; a file may have {limit}.")
    return boundary


def announced_size(request: Request) -> int | None:
    """The size in bytes that a request announces, the form included; None if it does not."""
    # The HTTP parser has checked the digits, but there can be thousands of leading zeros.
    length = request.headers.get("content-length", "").lstrip("0") or "0"
    if "content-length" not in request.headers or not re.fullmatch("[0-9]{1,20}", length):
        return None
    return int(length)


def _check_codings(request: Request) -> None:
    for header, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        codings = ",".join(request.headers.getlist(header)).lower().split(",")
        others = [coding.strip() for coding in codings if coding.strip() not in ("", plain)]
        if others:
            raise UnsupportedCoding(f"The body is sent with {header}: {', '.join(others)}.")


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind == b"multipart/form-data" and boundary:
        return boundary
    if kind == b"multipart/form-data":
        raise MissingFile(
            "The Content-Type is multipart/form-data, but names no boundary.",
            "Do not set Content-Type yourself: the HTTP library that makes the form writes it, "
            "with the boundary.",
        )
    if "transfer-encoding" not in request.headers and not request.headers.get(
        "content-length", ""
    ).strip("0"):
        raise MissingFile("The request has no body.")
    if not kind:
        raise MissingFile("The request has no Content-Type, so its body is not a form.")
    sent_as = kind.decode("latin-1")[:100]
    how = ", as curl's -d and --data-binary do" if kind.endswith(b"x-www-form-urlencoded") else ""
    raise MissingFile(f"The body was sent as {sent_as}{how}, not as multipart/form-data.")


async def receive_file(
    request: Request, boundary: bytes, writer: UploadWriter, idle_seconds: float
) -> Upload:
    """Stream the field `file` into `writer`. Its type and its filename are ignored.

    Raises:
        MissingFile: The form has no such field, or no file in it.
        InvalidParameter: The form is broken, or has the field twice.
        TooLarge: The file, or the rest of the form, is too large.
        RequestTimeout: It waited `idle_seconds` for the next 16 KiB.
        starlette.requests.ClientDisconnect: The client went away.
    """
    form = _Form(boundary)
    others = 0
    async for chunk in _chunks(request, idle_seconds):
        pieces = form.feed(chunk)
        others += len(chunk) - sum(map(len, pieces))
        if others > _OTHERS_LIMIT:
            raise TooLarge("The form carries more than the file.", "Send the field 'file' alone.")
        for piece in pieces:
            await writer.feed(piece)
    form.close()
    return await writer.finish()


async def _chunks(request: Request, idle_seconds: float) -> AsyncIterator[bytes]:
    """The body as it arrives. Only the time spent waiting for the client counts."""
    stream = request.stream()
    clock = asyncio.get_running_loop().time
    left, received = idle_seconds, 0
    while True:
        began = clock()
        try:
            async with asyncio.timeout(left):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            came = f"Only {received} bytes" if received else "Nothing"
            raise RequestTimeout(
                f"{came} arrived in {idle_seconds:g} seconds in the middle of the body."
            ) from None
        left -= clock() - began
        received += len(chunk)
        if received >= SLOW_BYTES:
            left, received = idle_seconds, 0
        yield chunk


class _Form:
    """Collects the bytes of the field `file`."""

    def __init__(self, boundary: bytes) -> None:
        self._splitter = Splitter(boundary)
        self._names: list[str] = []  # of the fields, in order
        self._inside = False
        self._named = False  # whether the field has a filename, as a file always should
        self._size = 0
        self._beginning = b""
        self._received = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The bytes of the field in this chunk of the body.

        Raises:
            InvalidParameter: The form is broken, or the file is encoded as text.
        """
        self._received = self._received or bool(chunk)
        pieces = []
        for found in self._splitter.feed(chunk):
            if isinstance(found, Part):
                self._begin(found)
            elif self._inside:
                if self._size <= _TEXT_LIMIT:
                    self._beginning += found[: _TEXT_LIMIT + 1]
                self._size += len(found)
                pieces.append(found)
        return pieces

    def _begin(self, part: Part) -> None:
        _, options = parse_options_header(part.headers.get(b"content-disposition"))
        # A quoted name may have a backslash before any character.
        name = options.get(b"name", b"").replace(b"\\", b"").decode("utf-8", "replace")
        self._inside = name == "file" and name not in self._names
        self._names.append(name)
        if self._inside:
            self._named = bool(options.get(b"filename"))
            coding = part.headers.get(b"content-transfer-encoding", b"").lower()
            if coding not in _AS_IT_IS:
                raise InvalidParameter(
                    "The file is sent with Content-Transfer-Encoding: "
                    f"{coding[:40].decode('latin-1')}.",
                    "Send the bytes of the file as they are, without encoding them as text.",
                )

    def close(self) -> None:
        """Check the form, now that the body has ended.

        Raises:
            InvalidParameter: The form is incomplete, or it has more than one file.
            MissingFile: The form has no file.
        """
        if not self._splitter.ended:
            raise self._incomplete()
        if "file" not in self._names:
            raise MissingFile(self._fields())
        if self._names.count("file") > 1:
            raise InvalidParameter(
                "The form has the field 'file' more than once.", "Send one file per request."
            )
        if not self._size:
            raise MissingFile(
                "The field 'file' is empty: it has 0 bytes.",
                "Choose a file that is not empty.",
            )
        if text := self._text():
            raise MissingFile(
                f"The field 'file' holds the text {text!r} instead of a file.",
                "Put an @ before the file's name (curl: -F file=@NAME).",
            )

    def _incomplete(self) -> InvalidParameter:
        if not self._received:
            return InvalidParameter("The body is empty.", "Send the form with the file in it.")
        if not self._names:
            return InvalidParameter(
                "The boundary that Content-Type names does not occur in the body.",
                "Do not set Content-Type yourself: let the HTTP library that makes the form do it.",
            )
        return InvalidParameter("The multipart body ends early.", "Send the whole body again.")

    def _fields(self) -> str:
        if not self._names:
            return "The form has no fields."
        names = ", ".join(repr(name[:40]) for name in self._names[:5])
        return f"The form has no field 'file', only {names}{' …' if self._names[5:] else ''}."

    def _text(self) -> str | None:
        """The text in the field, if it is a short line that was not sent as a file."""
        if self._named or self._size > _TEXT_LIMIT:
            return None
        try:
            text = self._beginning.decode().strip()
        except UnicodeDecodeError:
            return None
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        return shown if text.isprintable() else None
