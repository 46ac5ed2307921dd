"""A TCP relay in front of a server that cuts connections where a test says so."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]


@dataclass
class Cut:
    """Cut the connection on which `needle` passes, before it gets through.

    Attributes:
        then: Called first, while the connection still stands.
    """

    direction: Direction
    needle: bytes
    then: Callable[[], object] = lambda: None


@dataclass
class Relay:
    """Passes bytes between clients and the server at `port`; makes its cuts one after another.

    `sent` is everything that clients have sent.
    """

    port: int
    cuts: list[Cut]
    url: str = ""
    sent: bytearray = field(default_factory=bytearray)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, client: socket.socket) -> None:
        """Pass the bytes of one connection on, in both directions, until it ends."""
        try:
            server = socket.create_connection(("127.0.0.1", self.port))
        except OSError:
            client.close()
            return
        down = threading.Thread(target=self._pass, args=("down", server, client))
        down.start()
        self._pass("up", client, server)
        down.join()
        client.close()
        server.close()

    def _pass(self, direction: Direction, source: socket.socket, to: socket.socket) -> None:
        seen = b""
        with suppress(OSError):
            while data := source.recv(1 << 16):
                seen = seen[-100:] + data
                if self._cuts(direction, seen):
                    break
                if direction == "up":
                    self.sent += data
                to.sendall(data)
        for end in (source, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _cuts(self, direction: Direction, seen: bytes) -> bool:
        with self._lock:
            if not self.cuts or self.cuts[0].direction != direction:
                return False
            if self.cuts[0].needle not in seen:
                return False
            self.cuts.pop(0).then()
            return True


@contextmanager
def relay(url: str, *cuts: Cut) -> Iterator[Relay]:
    """A relay to the server at `url`, on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = Relay(port_of(url), list(cuts), f"http://127.0.0.1:{listening.getsockname()[1]}")
        threads: list[threading.Thread] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    threads.append(threading.Thread(target=one.carry, args=(client,)))
                    threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield one
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


def port_of(url: str) -> int:
    """The port of a server's URL."""
    return int(url.rpartition(":")[2])
