"""What a connection sends, even before it is known, and to clients that may never read it.

A client that stops reading would hold its response, and the open file behind it, for ever: the
network is fine, so no kernel closes the connection.
"""

import asyncio
import fcntl
import logging
import struct
import termios
from collections.abc import Callable
from typing import Any

_START_OF_RESPONSE = b"HTTP/1.1 "  # whatever its status
SLOW_BYTES = 16 << 10  # fewer in PFMS_IDLE_SECONDS, read or sent, and the client is cut off

log = logging.getLogger(__name__)


class Outgoing:
    """The transport that responses are written to.

    Args:
        transport: Of the connection.
        idle_seconds: In which a client has to read 16 KiB, while more than that waits for it.
        hang_up: Called to close the connection once what was written has been sent.
    """

    def __init__(
        self, transport: asyncio.Transport, idle_seconds: float, hang_up: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._idle_seconds = idle_seconds
        self._hang_up = hang_up
        self._begun = 0
        self._closed = False
        self._written = 0  # bytes
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Write one more letter of the next response."""
        self._send(_START_OF_RESPONSE[self._begun : self._begun + 1])
        self._begun = min(self._begun + 1, len(_START_OF_RESPONSE))

    def write(self, data: bytes) -> None:
        """Write the rest of a response."""
        if self._begun:
            data, self._begun = data[self._begun :], 0
        self._send(data)

    def _send(self, data: bytes) -> None:
        self._written += len(data)
        self._transport.write(data)

    def close(self) -> None:
        """Close the connection once what was written has been sent."""
        self._closed = True
        self._hang_up()

    def close_transport(self) -> None:
        """Close the connection for both directions, once the client has read what is left."""
        self._transport.close()
        self.watch()

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._closed or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    # --- clients that do not read --------------------------------------------------------------

    def watch(self) -> None:
        """Cut the client off unless it reads, from now until `unwatch`: bytes wait for it."""
        if self._timer is None:
            self._look_after(self._read())

    def unwatch(self) -> None:
        """All that waited is on its way, or the connection is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_after(self, read: int) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._idle_seconds, self._look, read)

    def _look(self, before: int) -> None:
        if (now := self._read()) - before >= SLOW_BYTES:
            self._look_after(now)
            return
        log.warning("cut off: a client that has read %d bytes and does not read on", now)
        self._timer = None
        self._transport.abort()

    def _read(self) -> int:
        """How many bytes have reached the client's machine."""
        waiting = self._transport.get_write_buffer_size()
        return self._written - waiting - _in_kernel(self._transport.get_extra_info("socket"))


def _in_kernel(sock: Any) -> int:
    """Bytes that the kernel has not sent, or that are not confirmed yet."""
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:  # a kernel that does not tell
        return 0
    count: int = struct.unpack("i", answer)[0]
    return count
