"""What a long-lived child says goes on to our own stderr; the last of it is kept."""

import asyncio
import contextlib
import os

_TAIL_BYTES = 16384
_STDERR = 2


class Relay:
    """A pipe to give to a child as its stdout and stderr. Made on the event loop that reads it.

    Attributes:
        theirs: The end to write to; `started` closes it here.
    """

    def __init__(self) -> None:
        self._our_end, self.child_end = os.pipe()
        os.set_blocking(self._our_end, False)
        self._tail = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._our_end, self._pass_on)

    def close_child_end(self) -> None:
        """The child has its end, or never will."""
        os.close(self.child_end)

    def close(self) -> str:
        """Stop, after passing on what is there now; the last that was said."""
        while self._our_end >= 0 and self._pass_on():
            pass
        self._close()
        return self._tail.decode(errors="replace")

    def _pass_on(self) -> bool:
        """Read once; whether there may be more."""
        try:
            data = os.read(self._our_end, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._close()
            return False
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        with contextlib.suppress(OSError):  # we have no stderr any more: as with our own log
            while data:
                data = data[os.write(_STDERR, data) :]
        return True

    def _close(self) -> None:
        if self._our_end >= 0:
            self._loop.remove_reader(self._our_end)
            os.close(self._our_end)
            self._our_end = -1
