"""The sockets of the warm parent and its children.

Part of the program `warm_parent.py`: imports nothing of pfms.
"""

import json
import socket
from typing import Any

Message = dict[str, Any]

_PACKET = 1 << 20  # bytes; more than a socket takes


class Link:
    """A socket: the server's, shared with the children, or the parent's for one child."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.fileno = sock.fileno

    def send(self, message: Message, *, wait: bool = True) -> bool:
        """Send a message, or without `wait` only if there is room; returns whether it was sent."""
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            self._sock.send(json.dumps(message).encode(), flags)
        except (ConnectionError, BlockingIOError):
            return False
        return True

    def receive(self) -> tuple[Message | None, int]:
        """The next message, or None at the end; and the descriptor that came with it, or -1."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._sock, _PACKET, 1)
        except ConnectionError:
            data, descriptors = b"", []
        return json.loads(data) if data else None, descriptors[0] if descriptors else -1
