"""The field `file` of a multipart body, streamed to where it is kept: no second copy, no spool."""

from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pfms.errors import InvalidParameter, MissingFile, TooLarge
from pfms.storage.upload import Upload, UploadWriter

_FIELD = b"file"
_OTHERS_LIMIT = 1 << 20  # bytes of headers and other fields that are read past

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
    """What can be refused before the body is read; else its boundary.

    Args:
        request: Whose headers are looked at.
        limit: The most bytes that the file may have.

    Raises:
        MissingFile: The body is no multipart form.
        TooLarge: Content-Length alone says so.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise MissingFile("The body is not multipart/form-data.")
    length = announced_size(request)
    if length is not None and length > limit + _OTHERS_LIMIT:
        raise TooLarge(f"The request has {length} bytes, and a file may have {limit}.")
    return boundary


def announced_size(request: Request) -> int | None:
    """The bytes that a request announces, form and all; None where it does not say."""
    length = request.headers.get("content-length", "").lstrip("0")  # of which any number may lead
    return int(length) if length.isdigit() else None


async def receive_file(request: Request, boundary: bytes, writer: UploadWriter) -> Upload:
    """Stream the field `file` into `writer`. Its filename and type are looked at by nobody.

    Raises:
        MissingFile: The form has no such field.
        InvalidParameter: The form is broken, or has the field twice.
        TooLarge: The file, or what is around it, is.
        starlette.requests.ClientDisconnect: The client went away.
    """
    others = 0
    try:
        form = _Form(boundary)
        async for chunk in request.stream():
            pieces = form.feed(chunk)
            others += len(chunk) - sum(map(len, pieces))
            if others > _OTHERS_LIMIT:
                raise TooLarge(
                    "The form carries more than the file.", "Send the field 'file' alone."
                )
            for piece in pieces:
                await writer.feed(piece)
        form.close()
    except FormParserError:
        raise InvalidParameter(
            "The multipart body is broken.", "Let an HTTP library make the form."
        ) from None
    if form.files == 0:
        raise MissingFile("The form has no field 'file'.")
    if form.files > 1:
        raise InvalidParameter("The form has the field 'file' more than once.", "Send one file.")
    return await writer.finish()


class _Form:
    """Collects the bytes of the field, as the parser comes upon them."""

    def __init__(self, boundary: bytes) -> None:
        self.files = 0
        self.ended = False
        self._pieces: list[bytes] = []
        self._inside = False
        self._name = b""
        self._value = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ends,
                "on_part_data": self._data,
                "on_part_end": self._part_ends,
                "on_end": self._ends,
            },
        )

    def feed(self, chunk: bytes) -> list[bytes]:
        """What of the field is in this chunk of the body."""
        self._pieces = []
        self._parser.write(chunk)
        return self._pieces

    def close(self) -> None:
        """Say that the body is over.

        Raises:
            InvalidParameter: The form is not.
        """
        self._parser.finalize()
        if not self.ended:
            raise InvalidParameter("The multipart body ends early.", "Send it again, whole.")

    def _part_begins(self) -> None:
        self._inside = False

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            if options.get(b"name") == _FIELD:
                self._inside = True
                self.files += 1
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._inside and self.files == 1:
            self._pieces.append(data[start:end])

    def _part_ends(self) -> None:
        self._inside = False

    def _ends(self) -> None:
        self.ended = True
