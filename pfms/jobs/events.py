"""What happens to a job, event by event, and how listeners hear of it."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pfms.jobs.job import ENDED


@dataclass(frozen=True)
class Event:
    """A change of state or progress. `n` grows over all jobs and restarts: the SSE event's ID."""

    n: int
    kind: str
    data: dict[str, Any]

    @property
    def ends(self) -> bool:
        """Whether it is the last of its job."""
        return self.kind == "state" and self.data["state"] in ENDED


END = None
Listener = asyncio.Queue[Event | None]


class Broadcast:
    """One queue a listener; `END` in it says that nothing more will come."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[Listener]] = defaultdict(set)

    @contextmanager
    def listen(self, job_id: str) -> Iterator[Listener]:
        """A queue that gets the job's events from now on."""
        listener: Listener = asyncio.Queue()
        self._listeners[job_id].add(listener)
        try:
            yield listener
        finally:
            self._listeners[job_id].discard(listener)
            if not self._listeners[job_id]:
                del self._listeners[job_id]

    def send(self, job_id: str, event: Event | None) -> None:
        """Give an event to everyone who listens to the job."""
        for listener in self._listeners.get(job_id, ()):
            listener.put_nowait(event)

    def end_all(self) -> None:
        """Let every stream end: the server stops."""
        for job_id in list(self._listeners):
            self.send(job_id, END)
