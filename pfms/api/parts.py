"""Splits a multipart body (RFC 2046, 5.1.1) into its parts while it arrives.

No available library reads all that the RFC allows and yields the same bytes however the body is
chunked: python-multipart knows neither a preamble nor folded headers, and Werkzeug's decoder adds
a byte where a chunk ends inside the last boundary.
"""

import re
from dataclasses import dataclass

from pfms.errors import InvalidParameter

_HEAD_LIMIT = 16 << 10  # bytes of a part's headers
_PARTS_LIMIT = 200
_BOUNDARY_LIMIT = 256  # bytes; the RFC allows 70

# What can follow a boundary: `--`, a line break after optional blanks, or too little to tell.
_REST_OF_LINE = re.compile(
    rb"(?P<last>--)|[ \t]*(?P<line>\r\n)|[ \t]*(?P<bare>\n)|-?\Z|[ \t]*\r?\Z"
)
_FOLD = re.compile(rb"\r\n[ \t]+")
_LIBRARY = "Let an HTTP library build the form (curl: -F file=@NAME)."


@dataclass(frozen=True)
class Part:
    """The head of a part: its headers by name in lower case, unfolded."""

    headers: dict[bytes, bytes]


class Splitter:
    """Takes a body in pieces of any size; keeps no more of it than a part's head.

    Attributes:
        ended: Whether the last boundary has been read.
    """

    def __init__(self, boundary: bytes) -> None:
        """Read parts between lines of `--boundary`.

        Raises:
            InvalidParameter: The boundary is too long.
        """
        if len(boundary) > _BOUNDARY_LIMIT:
            raise InvalidParameter(
                f"The boundary has {len(boundary)} characters; 70 are allowed.", _LIBRARY
            )
        self.ended = False
        self._delimiter = b"\r\n--" + boundary
        # The line break before the first boundary may be missing, so one is added. What precedes
        # that boundary is read like the content of a part, but is not returned.
        self._kept = b"\r\n"
        self._parts = 0
        self._in_head = False
        self._hidden = 2  # bytes of a line break, and not of content, at the start of `_kept`

    def feed(self, chunk: bytes) -> list[Part | bytes]:
        """The parts that begin in this piece of the body, and the content in it.

        Raises:
            InvalidParameter: This is not a multipart body, or too much of it is not content.
        """
        found: list[Part | bytes] = []
        buffer = self._kept + chunk
        at, goes_on = 0, not self.ended
        while goes_on:
            step = self._head if self._in_head else self._content
            at, goes_on = step(buffer, at, found)
        self._kept = b"" if self.ended else buffer[at:]
        return found

    def _content(self, buffer: bytes, start: int, found: list[Part | bytes]) -> tuple[int, bool]:
        """Take content up to the next boundary; return how far it was read and whether to go on."""
        search = start
        while (index := buffer.find(self._delimiter, search)) >= 0:
            rest = _REST_OF_LINE.match(buffer, index + len(self._delimiter))
            if rest is not None:
                break
            search = index + 2  # a longer string that begins like the boundary
        else:
            # A boundary has no CR, so only the last CR can begin a delimiter that is cut off.
            index = buffer.rfind(b"\r", max(start, len(buffer) - len(self._delimiter) + 1))
            if index < 0 or not self._delimiter.startswith(buffer[index:]):
                index = len(buffer)
            rest = None
        if index > start:
            if self._parts:
                found.append(buffer[start + self._hidden : index])
            self._hidden = 0
        self._check_length(buffer, index, rest.end() if rest else -1)
        if rest is None or rest.lastgroup is None:
            return index, False
        if rest["bare"]:
            raise _line_feeds()
        if rest["last"]:
            self.ended = True
            return index, False
        self._parts += 1
        if self._parts > _PARTS_LIMIT:
            raise InvalidParameter(
                f"The form has more than {_PARTS_LIMIT} parts.", "Send the field 'file' alone."
            )
        self._in_head = True
        return rest.start("line"), True

    def _head(self, buffer: bytes, start: int, found: list[Part | bytes]) -> tuple[int, bool]:
        """Take the headers of a part; `start` is the line break before them."""
        end = buffer.find(b"\r\n\r\n", start)
        if end < 0 and buffer.find(b"\n\n", start) >= 0:
            raise _line_feeds()
        self._check_length(buffer, start, end)
        if end < 0:
            return start, False
        found.append(Part(_headers(buffer[start + 2 : end])))
        # A part without content may end here: the second line break can belong to a boundary.
        self._in_head = False
        self._hidden = 2
        return end + 2, True

    def _check_length(self, buffer: bytes, start: int, end: int = -1) -> None:
        length = (len(buffer) if end < 0 else end) - start
        if length > _HEAD_LIMIT:
            raise InvalidParameter(
                f"A part of the form has more than {_HEAD_LIMIT} bytes of headers.", _LIBRARY
            )


def _headers(block: bytes) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in _FOLD.sub(b" ", block).split(b"\r\n") if block else []:
        name, colon, value = line.partition(b":")
        name = name.rstrip(b" \t").lower()
        if not colon or not name or re.search(rb"[\s\x00-\x1f\x7f-\xff]", name):
            raise InvalidParameter("A part of the form has a broken header.", _LIBRARY)
        headers.setdefault(name, value.strip(b" \t"))
    return headers


def _line_feeds() -> InvalidParameter:
    return InvalidParameter(
        "The lines of the form end in LF alone; they have to end in CR LF.", _LIBRARY
    )
