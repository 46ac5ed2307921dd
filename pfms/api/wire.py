"""HTTP/1.1 on one connection: uvicorn's protocol, made to work with more clients.

It adds four things: a request to upgrade is ignored; whatever is refused gets a problem document; a
client may shut down its sending side before the answer; one that is silent too long is cut off.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pfms.api.problems import problem
from pfms.errors import InvalidParameter, PfmsError, RequestTimeout

_HEAD_LIMIT = 64 << 10  # bytes of a request's line and headers, and of its trailers
_LINGER_SECONDS = 30  # for a client to read a refusal while it still sends
_LOOK_SECONDS = 1  # between two looks at whether a client that sends no more is still there
_EVERY_ANSWER = b"HTTP/1.1 "  # begins so, whatever its status


class Connection(HttpToolsProtocol):
    """What happens on one connection.

    Args:
        idle_seconds: Silence in the middle of a request after which the client is cut off.
        root_path: Before the links to the documentation (PFMS_ROOT_PATH).
        uvicorn: What uvicorn gives to each protocol.
    """

    def __init__(self, *, idle_seconds: float, root_path: str, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._idle_seconds = idle_seconds
        self._root = root_path
        self.url = b""  # uvicorn sets it when a request begins
        self._plain: asyncio.Transport = None  # type: ignore[assignment]
        self._line: _Line = None  # type: ignore[assignment]
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False  # of a request; at its first byte it becomes true
        self._in_message = False  # from the first byte of the head to the last of the body
        self._head_size = 0
        self._moves = False  # whether the parser told of anything while it took the last bytes
        self._unexplained = 0  # bytes that it has taken since it last told of something
        self._deaf = False  # whatever still comes is thrown away
        self._half_closed = False
        self._hung_up = False

    # --- the connection --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; a client that connects and says nothing is not kept."""
        super().connection_made(transport)
        self._plain = transport
        self._line = _Line(transport, self._hang_up)
        self.transport = cast("asyncio.Transport", self._line)
        self._set_timer(self._idle_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._hung_up = True
        self._set_timer(None)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: end now, or after the answer that is on its way."""
        if self._hung_up or self.cycle is None or self.cycle.response_complete:
            self._plain.close()
        else:
            self.cycle.keep_alive = False

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came after an answer."""
        self._plain.close()

    def _set_timer(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, then) if seconds and then else None

    def _head_is_late(self) -> None:
        if self._in_message:
            detail = f"The head of the request was not there after {self._idle_seconds:g} seconds."
            self._refuse(RequestTimeout(detail), 408)
        else:
            self._plain.close()

    # --- what comes --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._moves = False
        rest: bytes | None = data
        while rest is not None and not self._deaf:
            rest = self._parse(rest)
        if self._deaf:
            return
        self._unexplained = 0 if self._moves else self._unexplained + len(data)
        if self._unexplained > _HEAD_LIMIT:
            self._refuse(_too_long())
        elif self._in_head and self._timer is None:
            self._set_timer(self._idle_seconds, self._head_is_late)
        elif self._in_message and not self._in_head and self.cycle.response_complete:
            # The rest of a body that was refused; nobody else waits for it.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _parse(self, data: bytes) -> bytes | None:
        """Give bytes to the parser; those that it has to be given again, if any."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.parser.get_method() == b"CONNECT":
                self._refuse(
                    InvalidParameter("The method is CONNECT.", "Do not use this server as a proxy.")
                )
                return None
            return self._without_upgrade() + data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._refuse(_problem_of(error))
        return None

    def _without_upgrade(self) -> bytes:
        """The head that was read, for a new parser: it takes the body for another protocol's.

        A server may ignore `Upgrade` (RFC 9110, 7.8). Java's HttpClient and `curl --http2` send it
        with every first request.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([*lines, b"", b""])

    # --- what the parser tells -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._moves = self._in_head = self._in_message = True
        self._head_size = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer after the body: nobody looks at those."""
        self._count(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._moves = True
        self._head_size += size
        if self._head_size > _HEAD_LIMIT:
            raise _too_long()

    def on_headers_complete(self) -> None:
        """The body follows; or all of it again, without its `Upgrade`."""
        if self.parser.should_upgrade():
            return
        if (version := self.parser.get_http_version()) not in ("1.0", "1.1"):
            raise InvalidParameter(f"The request is in HTTP/{version}.", "Send it in HTTP/1.1.")
        super().on_headers_complete()
        self._moves, self._in_head = True, False
        self._set_timer(None)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._moves = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        if self.parser.should_upgrade():
            return
        self._moves, self._in_message = True, False
        super().on_message_complete()

    # --- refusals ----------------------------------------------------------------------------

    def _refuse(self, error: PfmsError, status: int = 400) -> None:
        """Answer in place of the service, and hang up."""
        self._deaf = True
        cycle = self.cycle
        in_work = cycle is not None and not cycle.response_complete
        if in_work and (self.pipeline or not cycle.more_body):
            # What is wrong comes after a request that is whole: that one is still answered.
            cycle.keep_alive = False
            return
        answered = self._in_message and not self._in_head and not in_work
        if in_work:
            cycle.disconnected = True  # for the service it is as if the client had left
            cycle.message_event.set()
        if not answered and not (in_work and cycle.response_started):
            self.logger.warning("refused: %s", error.detail)
            path = self.url.partition(b"?")[0].decode("ascii", "replace") if self.url else "/"
            answer = problem(error, path, self._root, {"Connection": "close"}, status)
            lines = [b"%s: %s\r\n" % pair for pair in answer.raw_headers]
            self._line.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", answer.body]))
        self._line.close()

    def _hang_up(self) -> None:
        """End the connection; let a client that still sends read its answer first.

        To close it with bytes unread would make the kernel reset it, and the client would lose what
        it has not read yet.
        """
        if self._hung_up:
            return
        self._hung_up = True
        more_may_come = self._in_message or self._deaf
        self._deaf = True
        if more_may_come and not self._half_closed and self._plain.can_write_eof():
            self._plain.write_eof()
            self.flow.resume_reading()
            self._set_timer(_LINGER_SECONDS, self._plain.abort)
        else:
            self._plain.close()

    # --- clients that have shut down their sending side ---------------------------------------

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more, or is gone: at first both look the same.

        Returns:
            Whether the connection stays open for the answer.
        """
        self._half_closed = True
        if self._in_message and not self._deaf:
            self._refuse(InvalidParameter("The request ended early.", "Send it again, whole."))
        in_work = self.cycle is not None and not self.cycle.response_complete
        if self._hung_up or not in_work or not self._plain.can_write_eof():
            return False
        self._deaf = True
        self.cycle.keep_alive = False
        if self._timer is None:
            self._look(0)
        return True

    def _look(self, times: int) -> None:
        """Find out whether a client that sends no more is still there.

        One that is gone answers whatever we send by a reset. So its answer is begun early: a few
        letters of the words that every answer begins with, at ever longer intervals.
        """
        if self._plain.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._plain.abort()
            return
        if times & (times - 1) == 0 and not self.cycle.response_started and not self.pipeline:
            self._line.begin()
        self._set_timer(_LOOK_SECONDS, lambda: self._look(times + 1))


class _Line:
    """The transport that answers are written to."""

    def __init__(self, transport: asyncio.Transport, hang_up: Callable[[], None]) -> None:
        self._transport = transport
        self._hang_up = hang_up
        self._begun = 0
        self._closed = False

    def begin(self) -> None:
        """Write one more letter of the next answer, which is not known yet."""
        self._transport.write(_EVERY_ANSWER[self._begun : self._begun + 1])
        self._begun = min(self._begun + 1, len(_EVERY_ANSWER))

    def write(self, data: bytes) -> None:
        """Write the rest of an answer."""
        if self._begun:
            data, self._begun = data[self._begun :], 0
        self._transport.write(data)

    def close(self) -> None:
        """End the connection, once what was written has left."""
        self._closed = True
        self._hang_up()

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._closed or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _too_long() -> InvalidParameter:
    return InvalidParameter(
        f"The head of the request has more than {_HEAD_LIMIT} bytes.",
        "Send fewer and shorter headers.",
    )


def _problem_of(error: httptools.HttpParserError) -> PfmsError:
    cause = error.__context__
    if isinstance(cause, PfmsError):
        return cause
    if cause is not None:
        return InvalidParameter("The URL of the request cannot be read.", "Let it name a path.")
    if isinstance(error, httptools.HttpParserInvalidURLError):
        return InvalidParameter(
            "The URL has a character that a URL cannot have.",
            "Percent-encode the URL: a space is %20, an ä is %C3%A4.",
        )
    return InvalidParameter(
        f"The request is not HTTP/1.1: {error}.", "Let an HTTP library make the request."
    )
