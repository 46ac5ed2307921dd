"""HTTP by hand: what no client library would send, sent piece by piece over a real connection."""

import http.client
import io
import json
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

BOUNDARY = "the-boundary"
FILE = 'form-data; name="file"; filename="ct"'
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def part(content: bytes, disposition: str = FILE, more: str = "") -> bytes:
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


class _Incoming(io.BufferedReader):
    """What comes, read by one answer after the other: none may close it or keep what follows."""

    def makefile(self, mode: str) -> "_Incoming":
        """As of a socket, for `HTTPResponse`."""
        return self

    def close(self) -> None:
        """Stay open for the next answer."""


class Wire:
    """A connection to a server; `tls` is needed for https."""

    def __init__(
        self,
        url: str,
        seconds: float = 60,
        tls: ssl.SSLContext | None = None,
        *,
        buffer: int | None = None,
        source: str = "",
    ) -> None:
        """Connect, with a receive buffer of so many bytes, from the address `source`."""
        place = urlsplit(url)
        assert place.hostname
        assert place.port
        family = socket.AF_INET6 if ":" in place.hostname else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.settimeout(seconds)
        if buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if source:
            self._socket.bind((source, 0))
        self._socket.connect((place.hostname, place.port))
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname=place.hostname)
        self._incoming = _Incoming(self._socket.makefile("rb", buffering=0))

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

    def send_at_once(self, content: bytes) -> bool:
        """Send what the kernel takes without waiting; whether it took any."""
        with self._without_waiting():
            return self._socket.send(content) > 0
        return False

    def read(self, most: int) -> bytes:
        """Some of what comes; nothing at the end."""
        return self._socket.recv(most)

    def line(self) -> str:
        """The first line that comes, and the empty one after it: of a 100 Continue, say."""
        seen = b""
        while not seen.endswith(b"\r\n\r\n"):
            more = self._incoming.read(1)
            assert more, seen
            seen += more
        return seen.decode().strip()

    def answer(self, method: str = "POST") -> Answer:
        """The answer to what was sent; `method` is what it was sent by."""
        response = http.client.HTTPResponse(self._incoming, method=method)  # type: ignore[arg-type]
        response.begin()
        with response:
            return Answer(response)

    def say_no_more(self) -> None:
        """Shut down the sending side, as `nc -N` and socat do, and still listen."""
        self._socket.shutdown(socket.SHUT_WR)

    def say_goodbye(self) -> None:
        """Close TLS as its rules ask: by saying so, and waiting for the same."""
        assert isinstance(self._socket, ssl.SSLSocket)
        self._socket.unwrap()

    def ends(self) -> bytes:
        """What comes until the server closes the connection."""
        return self._incoming.read()

    @property
    def port(self) -> int:
        """Of this end."""
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def server_port(self) -> int:
        """Of the other end."""
        port: int = self._socket.getpeername()[1]
        return port

    def peek(self) -> bytes:
        """What has come already; it can still be read."""
        with self._without_waiting():
            return self._socket.recv(65536, socket.MSG_PEEK)
        return b""

    @contextmanager
    def _without_waiting(self) -> Iterator[None]:
        """End where the kernel would wait. A flag would not do: Python waits before the call."""
        seconds = self._socket.gettimeout()
        self._socket.setblocking(False)
        try:
            with suppress(BlockingIOError):
                yield
        finally:
            self._socket.settimeout(seconds)

    def is_answered_or_closed(self) -> bool:
        """Whether anything has come, even if only the end."""
        try:
            with self._without_waiting():
                self._socket.recv(1, socket.MSG_PEEK)
                return True
        except ConnectionError:
            return True
        return False

    def hang_up(self, *, reset: bool = False) -> None:
        """Go away without a word, or with a reset."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._incoming.raw.close()
        self._socket.close()
