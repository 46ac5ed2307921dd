"""The queue of jobs and the device slots that they run in. Pure: it starts nothing itself."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """A place to run a job: `index` distinguishes the slots of a device."""

    device: str
    index: int


class JobQueue:
    """First come, first served."""

    def __init__(self, devices: Sequence[str], per_device: int) -> None:
        self.per_device = per_device
        self._waiting: dict[str, None] = {}  # an ordered set
        self._running: dict[str, Slot] = {}
        self._reserved = 0
        self.devices: tuple[str, ...] = ()
        self.set_devices(devices)

    def set_devices(self, devices: Sequence[str]) -> None:
        """Use these devices from now on; running jobs finish where they are."""
        self.devices = tuple(devices)
        self._slots = [Slot(device, i) for i in range(self.per_device) for device in devices]

    def reserve(self, limit: int) -> bool:
        """Reserve a place for a job that is still being received; False if the queue is full.

        Args:
            limit: How many jobs may wait when every slot is taken.
        """
        busy = set(self._running.values())
        free = sum(slot not in busy for slot in self._slots)
        if len(self._waiting) + self._reserved >= limit + free:
            return False
        self._reserved += 1
        return True

    def unreserve(self) -> None:
        """End a reservation made by `reserve`."""
        self._reserved -= 1

    def add(self, job_id: str, *, first: bool = False) -> None:
        """Add a job at the end, or with `first` at the front."""
        if first:
            self._waiting = {job_id: None, **self._waiting}
        else:
            self._waiting[job_id] = None

    def discard(self, job_id: str) -> bool:
        """Remove a waiting job; False if it is not waiting."""
        if job_id not in self._waiting:
            return False
        del self._waiting[job_id]
        return True

    def take(self) -> tuple[str, Slot] | None:
        """Give the next job a free slot; None if no job waits or no slot is free."""
        busy = set(self._running.values())
        slot = next((slot for slot in self._slots if slot not in busy), None)
        if slot is None or not self._waiting:
            return None
        job_id = next(iter(self._waiting))
        del self._waiting[job_id]
        self._running[job_id] = slot
        return job_id, slot

    def release(self, job_id: str) -> None:
        """Free the slot of a job that has ended."""
        self._running.pop(job_id, None)

    @property
    def waiting(self) -> list[str]:
        """The waiting jobs, the next one first."""
        return list(self._waiting)

    @property
    def running(self) -> dict[str, Slot]:
        """The running jobs and their slots."""
        return dict(self._running)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def slot_count(self) -> int:
        """How many jobs can run at a time."""
        return len(self._slots)
