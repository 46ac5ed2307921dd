"""Passes the output of a long-lived child on to our own stderr, and keeps the end of it."""

import asyncio
import contextlib
import os

_TAIL_BYTES = 16384
_STDERR = 2


class Relay:
    """A pipe for a child's stdout and stderr. Create it on the event loop that is to read it.

    Attributes:
        child_end: The descriptor that the child writes to.
    """

    def __init__(self) -> None:
        self._our_end, self.child_end = os.pipe()
        os.set_blocking(self._our_end, False)
        self._tail = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._our_end, self._pass_on)

    def close_child_end(self) -> None:
        """Close the child's end in this process, once the child has it or could not be started."""
        os.close(self.child_end)

    def close(self) -> str:
        """Pass on what is there now, then stop; returns the end of the output."""
        while self._our_end >= 0 and self._pass_on():
            pass
        self._close()
        return self._tail.decode(errors="replace")

    def _pass_on(self) -> bool:
        """Read once; returns whether there may be more."""
        try:
            data = os.read(self._our_end, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._close()
            return False
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        with contextlib.suppress(OSError):  # our stderr is closed: our own log is lost as well
            while data:
                data = data[os.write(_STDERR, data) :]
        return True

    def _close(self) -> None:
        if self._our_end >= 0:
            self._loop.remove_reader(self._our_end)
            os.close(self._our_end)
            self._our_end = -1
