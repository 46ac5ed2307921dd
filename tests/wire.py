"""HTTP by hand: what no client library would send, sent piece by piece over a real connection."""

import http.client
import json
import socket
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

BOUNDARY = "the-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def part(content: bytes, disposition: str = 'form-data; name="file"', more: str = "") -> bytes:
    """One part of a form, with the line that begins it."""
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n{more}\r\n"
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A whole body of the type `FORM`."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


class Answer:
    """Status, headers and body."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection to a server."""

    def __init__(self, url: str, seconds: float = 60) -> None:
        place = urlsplit(url)
        assert place.hostname
        assert place.port
        self._socket = socket.create_connection((place.hostname, place.port), timeout=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hang_up()

    def head(self, method: str, target: str, **headers: str | int) -> None:
        """Send a request's head; `_` in the name of a header is `-`."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    def send(self, content: bytes) -> None:
        self._socket.sendall(content)

    def line(self) -> str:
        """The first line that comes, and the empty one after it: of a 100 Continue, say."""
        seen = b""
        while not seen.endswith(b"\r\n\r\n"):
            more = self._socket.recv(1)
            assert more, seen
            seen += more
        return seen.decode().strip()

    def answer(self, method: str = "POST") -> Answer:
        """The answer to what was sent; `method` is what it was sent by."""
        response = http.client.HTTPResponse(self._socket, method=method)
        response.begin()
        with response:
            return Answer(response)

    def hang_up(self) -> None:
        """Go away without a word."""
        self._socket.close()
