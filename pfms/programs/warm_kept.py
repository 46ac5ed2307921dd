"""Processes that stay after a run, for the slot's next run of the same kind: the parent's side.

Part of the program `warm_parent.py`: imports nothing of pfms. The other side is `warm_stay.py`.

An order may carry {slot, kind, runs, seconds} as `stay`. The process of its slot takes it if its
last run was of the same kind; otherwise that process is dismissed, and another one is forked. A
process is also dismissed when it has waited for so many seconds, and ends itself after so many
runs, or after one that did not end well or left something behind. To be dismissed is to have one's
socket closed.
"""

import contextlib
import json
import socket
import time
from collections.abc import Collection
from typing import Any

Message = dict[str, Any]

_PACKET = 4096  # bytes; more than a child says


class Kept:
    """The processes that may stay, by slot."""

    def __init__(self) -> None:
        self._by_slot: dict[str, _Process] = {}

    def take(self, order: Message, log: int) -> int:
        """Have the process of the order's slot run it; 0 if there is none for this kind of run."""
        stay = order["stay"]
        process = self._by_slot.get(stay["slot"])
        if process is None:
            return 0
        if process.waiting and process.kind == stay["kind"] and process.take(order, log):
            return process.pid
        self._dismiss(process)
        return 0

    def add(self, pid: int, link: socket.socket, stay: Message) -> None:
        """A process was forked for the first of several runs; `link` is our end of its socket."""
        self._by_slot[stay["slot"]] = _Process(pid, link, stay)

    def links(self) -> list[socket.socket]:
        """What is readable when a process has something to say."""
        return [process.link for process in self._by_slot.values()]

    def ended_well(self, readable: Collection[Any]) -> list[tuple[int, Message]]:
        """The processes that now wait for their next run, and what they say of the last one."""
        found = []
        for process in list(self._by_slot.values()):
            if process.link in readable:
                said = b""
                with contextlib.suppress(ConnectionError):
                    said = process.link.recv(_PACKET)
                if said:
                    process.wait_until = time.monotonic() + process.seconds
                    found.append((process.pid, json.loads(said)))
                else:  # it has ended
                    self._dismiss(process)
        return found

    def seconds_left(self) -> float | None:
        """Until the next process has waited for too long; None if none waits."""
        ends = [each.wait_until for each in self._by_slot.values() if each.waiting]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def dismiss_idle(self) -> None:
        """Dismiss those that have waited for too long."""
        now = time.monotonic()
        for process in list(self._by_slot.values()):
            if process.waiting and process.wait_until <= now:
                self._dismiss(process)

    def forget(self, pid: int) -> None:
        """A process has ended."""
        for process in list(self._by_slot.values()):
            if process.pid == pid:
                self._dismiss(process)

    def close(self) -> None:
        """In a child: let go of the others' sockets, or they would not notice a dismissal."""
        for process in self._by_slot.values():
            process.link.close()
        self._by_slot.clear()

    def _dismiss(self, process: "_Process") -> None:
        process.link.close()
        self._by_slot = {slot: other for slot, other in self._by_slot.items() if other != process}


class _Process:
    def __init__(self, pid: int, link: socket.socket, stay: Message) -> None:
        self.pid = pid
        self.link = link
        self.kind = stay["kind"]
        self.seconds = stay["seconds"]
        self.wait_until = float("inf")  # while it runs

    @property
    def waiting(self) -> bool:
        return self.wait_until < float("inf")

    def take(self, order: Message, log: int) -> bool:
        try:
            socket.send_fds(self.link, [json.dumps(order).encode()], [log])
        except OSError:  # it has died
            return False
        self.wait_until = float("inf")
        return True
