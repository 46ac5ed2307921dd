"""Tells everyone who listens to a job what happens to it."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from pfms.jobs.table import Event

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

    def tell(self, job_id: str, event: Event | None) -> None:
        """Give an event to everyone who listens to the job."""
        for listener in self._listeners.get(job_id, ()):
            listener.put_nowait(event)

    def end_all(self) -> None:
        """Let every stream end: the server stops."""
        for job_id in list(self._listeners):
            self.tell(job_id, END)
