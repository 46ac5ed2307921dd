"""The events of a job, and how they reach listeners."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pfms.jobs.job import ENDED


@dataclass(frozen=True)
class Event:
    """A change of state or progress. `n`, the SSE event ID, grows across all jobs and restarts."""

    n: int
    kind: str
    data: dict[str, Any]

    @property
    def ends(self) -> bool:
        """Whether this is the last event of its job."""
        return self.kind == "state" and self.data["state"] in ENDED


END = None
Listener = asyncio.Queue[Event | None]


class Broadcast:
    """Passes events on, by one queue per listener; `END` in it means that no more will come."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[Listener]] = defaultdict(set)

    @contextmanager
    def listen(self, job_id: str) -> Iterator[Listener]:
        """A queue that receives the job's events from now on."""
        listener: Listener = asyncio.Queue()
        self._listeners[job_id].add(listener)
        try:
            yield listener
        finally:
            self._listeners[job_id].discard(listener)
            if not self._listeners[job_id]:
                del self._listeners[job_id]

    def send(self, job_id: str, event: Event | None) -> None:
        """Pass an event to everyone who is listening to the job."""
        for listener in self._listeners.get(job_id, ()):
            listener.put_nowait(event)

    def end_all(self) -> None:
        """End every stream, because the server is stopping."""
        for job_id in list(self._listeners):
            self.send(job_id, END)
