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
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)
        self._tail = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ours, self._pass_on)

    def started(self) -> None:
        """The child has its end, or never will."""
        os.close(self.theirs)

    def close(self) -> str:
        """Stop, after passing on what is there now; the last that was said."""
        while self._ours >= 0 and self._pass_on():
            pass
        self._hang_up()
        return self._tail.decode(errors="replace")

    def _pass_on(self) -> bool:
        """Read once; whether there may be more."""
        try:
            data = os.read(self._ours, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._hang_up()
            return False
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        with contextlib.suppress(OSError):  # we have no stderr any more: as with our own log
            while data:
                data = data[os.write(_STDERR, data) :]
        return True

    def _hang_up(self) -> None:
        if self._ours >= 0:
            self._loop.remove_reader(self._ours)
            os.close(self._ours)
            self._ours = -1
