"""HTTP/1.1 on one connection: uvicorn's protocol, made to work with more clients.

It adds five things: requests to upgrade are ignored; every refusal is a problem document; a client
may shut down its sending side before the response; one that is silent or slow for too long is cut
off, whether it sends or reads; what surrounds a body is bounded.
"""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pfms.api.door import Door
from pfms.api.outgoing import SLOW_BYTES, Outgoing
from pfms.api.problems import problem
from pfms.errors import (
    HeadersTooLarge,
    InvalidParameter,
    PfmsError,
    RequestTimeout,
    TooManyConnections,
)

_HEAD_LIMIT = 64 << 10  # bytes of a request's line and headers, and of its trailers
_HEADERS_LIMIT = 200  # of a request, its trailers included
_FRAMING_LIMIT = 1 << 20  # bytes around a chunked body: sizes, extensions, trailers, what precedes
_FRAMING_PER_BYTE = 16  # and for each byte of the body so many more: a chunk of one has 6
_LINGER_SECONDS = 30  # for a client to read a refusal while it is still sending
_TURNED_AWAY_SECONDS = 2  # for a client to read that there are too many connections
_RETRY_SECONDS = 5  # after which it may try again
_PROBE_SECONDS = 1  # between checks whether a half-closed client is still there
_LARGER_CHUNKS = "Send larger chunks, without extensions."


class Connection(HttpToolsProtocol):
    """One connection.

    Args:
        idle_seconds: Silence in the middle of a request after which the client is cut off.
        door: Which counts the connections.
        on_refusal: Called with the code and the status of each problem that is answered here, and
            the address of the client, if it is known.
        root_path: Prefix of the links to the documentation (PFMS_ROOT_PATH).
        uvicorn: What uvicorn passes to each protocol.
    """

    def __init__(
        self,
        *,
        idle_seconds: float,
        door: Door,
        root_path: str,
        on_refusal: Callable[[str, int, str | None], None],
        **uvicorn: Any,
    ) -> None:
        super().__init__(**uvicorn)
        self._idle_seconds = idle_seconds
        self._door = door
        self._leave: Callable[[], None] = lambda: None
        self._root = root_path
        self._on_refusal = on_refusal
        self.url = b""  # uvicorn sets it when a request begins
        self._plain: asyncio.Transport = None  # type: ignore[assignment]
        self._responses: Outgoing = None  # type: ignore[assignment]
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False  # from the first byte of a request to the end of its headers
        self._in_message = False  # from the first byte of the head to the last of the body
        self._head_size = 0
        self._headers = 0  # how many there were
        self._received = 0  # bytes since the body began, and a little before it
        self._body_size = 0
        self._rest = 0  # bytes of a refused body since the client last proved not to be slow
        self._progressed = False  # whether the last bytes completed anything for the parser
        self._without_progress = 0  # bytes that the parser has taken since it last progressed
        self._discarding = False  # whatever still arrives
        self._half_closed = False
        self._hung_up = False

    # --- the connection --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; a client that connects and sends nothing is not kept."""
        super().connection_made(transport)
        self._plain = transport
        self._responses = Outgoing(transport, self._idle_seconds, self._hang_up)
        self.transport = cast("asyncio.Transport", self._responses)
        try:
            key = self._door.enter(self.client[0] if self.client else "")
        except TooManyConnections as error:
            self._turn_away(error)
        else:
            self._leave = partial(self._door.leave, key)
            self._set_timer(self._idle_seconds, self._head_is_late)

    def _turn_away(self, error: TooManyConnections) -> None:
        if not self._door.turn_away():
            self._plain.abort()
            return
        self._leave = self._door.turned_away
        error.retry_after = _RETRY_SECONDS
        self._refuse(error)
        self._set_timer(_TURNED_AWAY_SECONDS, self._plain.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._hung_up = True
        self._set_timer(None)
        self._unset_keepalive_if_required()  # uvicorn leaves it after a reset
        self._responses.unwatch()
        self._leave()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: close now, or after the response in progress."""
        if self._hung_up or self.cycle is None or self.cycle.response_complete:
            self._responses.close_transport()
        else:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        """More waits to be sent than is good: the client has to read."""
        super().pause_writing()
        self._responses.watch()

    def resume_writing(self) -> None:
        """Little is left to be sent."""
        if not self._plain.is_closing():
            self._responses.unwatch()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """No request followed a response."""
        self._responses.close_transport()

    def _set_timer(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, then) if seconds and then else None

    def _head_is_late(self) -> None:
        if self._in_message:
            detail = f"The head of the request was incomplete after {self._idle_seconds:g} seconds."
            self._refuse(RequestTimeout(detail))
        else:
            self._responses.close_transport()

    # --- input -------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        if self._discarding:
            return
        self._progressed = False
        rest: bytes | None = data
        while rest is not None and not self._discarding:
            rest = self._parse(rest)
        if self._discarding:
            return
        self._without_progress = 0 if self._progressed else self._without_progress + len(data)
        self._received += len(data)
        framing = self._received - self._body_size
        if self._without_progress > _HEAD_LIMIT:
            self._refuse(_too_long())
        elif framing > _FRAMING_LIMIT + _FRAMING_PER_BYTE * self._body_size:
            self._refuse(InvalidParameter("The chunks of the body are too small.", _LARGER_CHUNKS))
        elif self._in_head and self._timer is None:
            self._set_timer(self._idle_seconds, self._head_is_late)
        elif self._in_message and not self._in_head and self.cycle.response_complete:
            self._take_rest(len(data))

    def _take_rest(self, size: int) -> None:
        """Some of a body came that was refused: nothing else limits how long it may take."""
        self._rest += size
        if self._rest >= SLOW_BYTES:
            self._rest = 0
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _parse(self, data: bytes) -> bytes | None:
        """Feed the parser; return bytes that it must be fed again, if any."""
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
        """Make a new parser, and return the head for it without `Upgrade`.

        The old one would take the body for another protocol's. A server may ignore `Upgrade`
        (RFC 9110, 7.8); Java's HttpClient and `curl --http2` send it with every first request.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([*lines, b"", b""])

    # --- callbacks of the parser ---------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request; line breaks before it do not count."""
        self._unset_keepalive_if_required()
        self._progressed = self._in_head = self._in_message = True
        self._head_size = self._headers = self._received = self._body_size = self._rest = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer after the body, which is ignored."""
        self._headers += 1
        self._count(len(name) + len(value))
        if self._headers > _HEADERS_LIMIT:
            raise HeadersTooLarge(f"The request has more than {_HEADERS_LIMIT} headers.")
        if self._in_head:
            super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._progressed = True
        self._head_size += size
        if self._head_size > _HEAD_LIMIT:
            raise _too_long()

    def on_headers_complete(self) -> None:
        """The body follows; or the whole request again, without its `Upgrade`."""
        if self.parser.should_upgrade():
            return
        if (version := self.parser.get_http_version()) not in ("1.0", "1.1"):
            raise InvalidParameter(f"The request is in HTTP/{version}.", "Send it in HTTP/1.1.")
        super().on_headers_complete()
        self._progressed, self._in_head = True, False
        self._set_timer(None)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._progressed = True
        self._body_size += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self.parser.should_upgrade():
            return
        self._progressed, self._in_message = True, False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request. No more are read while some wait, or they would pile up."""
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()

    # --- refusals ----------------------------------------------------------------------------

    def _refuse(self, error: PfmsError) -> None:
        """Respond in place of the service, and hang up."""
        self._discarding = True
        cycle = self.cycle
        in_progress = cycle is not None and not cycle.response_complete
        if in_progress and (self.pipeline or not cycle.more_body):
            # The fault comes after a complete request, which still gets its response.
            cycle.keep_alive = False
            return
        answered = self._in_message and not self._in_head and not in_progress
        if in_progress:
            cycle.disconnected = True  # for the service it is as if the client had left
            cycle.message_event.set()
        if not answered and not (in_progress and cycle.response_started):
            self.logger.warning("refused: %s", error.detail)
            path = self.url.partition(b"?")[0].decode("ascii", "replace") if self.url else "/"
            status = 400 if isinstance(error, InvalidParameter) else None  # 422 is for the service
            answer = problem(error, path, self._root, {"Connection": "close"}, status)
            address = self.client[0] if self.client else None
            self._on_refusal(error.code, answer.status_code, address)
            lines = [b"%s: %s\r\n" % pair for pair in answer.raw_headers]
            start = STATUS_LINE[answer.status_code]
            self._responses.write(b"".join([start, *lines, b"\r\n", answer.body]))
        self._responses.close()

    def _hang_up(self) -> None:
        """Close the connection; let a client that is still sending read its response first.

        Closing it with bytes unread would make the kernel reset it, and the client would lose what
        it has not read yet.
        """
        if self._hung_up:
            return
        self._hung_up = True
        more_may_come = self._in_message or self._discarding
        self._discarding = True
        if more_may_come and not self._half_closed:
            if self._plain.can_write_eof():
                self._plain.write_eof()  # over TLS, `Connection: close` has to be enough
            self.flow.resume_reading()
            self._set_timer(_LINGER_SECONDS, self._plain.abort)
        else:
            self._responses.close_transport()

    # --- clients that have shut down their sending side ---------------------------------------

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client has finished sending, or is gone: at first both look the same.

        Over TLS it counts as gone, because asyncio closes both sides there.

        Returns:
            Whether the connection stays open for the response.
        """
        self._half_closed = True
        if self._in_message and not self._discarding:
            self._refuse(
                InvalidParameter("The request ended early.", "Send the whole request again.")
            )
        in_progress = self.cycle is not None and not self.cycle.response_complete
        if self._hung_up or not in_progress or not self._plain.can_write_eof():
            return False
        self._discarding = True
        self.cycle.keep_alive = False
        if self._timer is None:
            self._probe(0)
        return True

    def _probe(self, times: int) -> None:
        """Find out whether a half-closed client is still there.

        One that is gone replies to whatever we send with a reset. So its response is begun early:
        a few letters of the words with which every response begins, at ever longer intervals.
        """
        if self._plain.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._plain.abort()
            return
        if times & (times - 1) == 0 and not self.cycle.response_started and not self.pipeline:
            self._responses.begin()
        self._set_timer(_PROBE_SECONDS, lambda: self._probe(times + 1))


def _too_long() -> HeadersTooLarge:
    return HeadersTooLarge(
        f"The URL and the headers, or what follows the body, have more than {_HEAD_LIMIT} bytes."
    )


def _problem_of(error: httptools.HttpParserError) -> PfmsError:
    cause = error.__context__
    if isinstance(cause, PfmsError):
        return cause
    if cause is not None:
        return InvalidParameter("The URL of the request cannot be read.", "Send a URL with a path.")
    if isinstance(error, httptools.HttpParserInvalidURLError):
        return InvalidParameter(
            "The URL has a character that a URL cannot have.",
            "Percent-encode the URL: a space is %20, an ä is %C3%A4.",
        )
    return InvalidParameter(
        f"The request is not HTTP/1.1: {error}.", "Use an HTTP library to make the request."
    )
