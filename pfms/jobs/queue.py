"""The queue over device slots: order, cancel, estimate. Pure: it starts nothing itself."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One place to run: `index` tells the slots of a device apart."""

    device: str
    index: int


class JobQueue:
    """First come, first served."""

    def __init__(self, devices: Sequence[str], per_device: int) -> None:
        self.per_device = per_device
        self._waiting: dict[str, None] = {}  # ordered, and quick to remove from
        self._running: dict[str, Slot] = {}
        self._reserved = 0
        self.devices: tuple[str, ...] = ()
        self.set_devices(devices)

    def set_devices(self, devices: Sequence[str]) -> None:
        """Run on these from now on; what runs elsewhere ends there."""
        self.devices = tuple(devices)
        self._slots = [Slot(device, i) for i in range(self.per_device) for device in devices]

    def reserve(self, limit: int) -> bool:
        """Keep a place for a job that is still being received; False where there is none.

        Args:
            limit: How many jobs may wait while every slot is taken.
        """
        busy = set(self._running.values())
        free = sum(slot not in busy for slot in self._slots)
        if len(self._waiting) + self._reserved >= limit + free:
            return False
        self._reserved += 1
        return True

    def unreserve(self) -> None:
        """Let go of a place that `reserve` kept."""
        self._reserved -= 1

    def add(self, job_id: str, *, first: bool = False) -> None:
        """Put a job at the end, or back at the front."""
        if first:
            self._waiting = {job_id: None, **self._waiting}
        else:
            self._waiting[job_id] = None

    def discard(self, job_id: str) -> bool:
        """Take a waiting job out; False if it does not wait."""
        if job_id not in self._waiting:
            return False
        del self._waiting[job_id]
        return True

    def take(self) -> tuple[str, Slot] | None:
        """The next job and the slot it gets, or None if either is missing."""
        busy = set(self._running.values())
        slot = next((slot for slot in self._slots if slot not in busy), None)
        if slot is None or not self._waiting:
            return None
        job_id = next(iter(self._waiting))
        del self._waiting[job_id]
        self._running[job_id] = slot
        return job_id, slot

    def release(self, job_id: str) -> None:
        """Give back the slot of a job that has ended."""
        self._running.pop(job_id, None)

    @property
    def waiting(self) -> list[str]:
        """The jobs that wait, the next first."""
        return list(self._waiting)

    @property
    def running(self) -> dict[str, Slot]:
        """The jobs that run, and where."""
        return dict(self._running)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def slot_count(self) -> int:
        """How many jobs may run at a time."""
        return len(self._slots)
