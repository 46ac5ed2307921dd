"""The queue of jobs and the device slots that they run in. Pure: it starts nothing itself."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TypeVar

T = TypeVar("T")
Owner = str | None  # as in a job's record


@dataclass(frozen=True)
class Slot:
    """A place to run a job: `index` distinguishes the slots of a device."""

    device: str
    index: int


class JobQueue:
    """Fair between owners, and first come, first served within one.

    The next job is that of the waiting owner whose last turn is the longest ago, so that owners
    take turns, and the first job of one who joins them is next. Jobs that are put back go first.

    A job whose run needs more memory than the running ones leave waits, and so do those behind it:
    if smaller ones could pass, a large one might wait for ever. Only the first job of an owner who
    joins can still go before it. While nothing runs, the next job starts whatever it needs.

    Args:
        devices: What jobs run on.
        per_device: How many at a time on each.
        memory: Bytes that jobs may use together; 0 is no limit.
    """

    def __init__(self, devices: Sequence[str], per_device: int, memory: int = 0) -> None:
        self.per_device = per_device
        self.memory = memory
        # Of each owner that has any, the jobs and the memory that they need.
        self._waiting: dict[Owner, dict[str, int]] = {}
        self._put_back: dict[str, tuple[Owner, int]] = {}
        self._running: dict[str, tuple[Slot, Owner, int]] = {}
        self._reserved: Counter[Owner] = Counter()
        self._turns = 0
        self._last_turn: dict[Owner, int] = {}
        self.devices: tuple[str, ...] = ()
        self.set_devices(devices)

    def set_devices(self, devices: Sequence[str]) -> None:
        """Use these devices from now on; running jobs finish where they are."""
        self.devices = tuple(devices)
        self._slots = [Slot(device, i) for i in range(self.per_device) for device in devices]

    def reserve(self, limit: int, owner: Owner = None) -> bool:
        """Reserve a place for a job that is still being received; False if the queue is full.

        Args:
            limit: How many jobs may wait when every slot is taken.
            owner: Whose job it is. An owner with no job in a queue that others have filled gets
                one place all the same.
        """
        # If a job waits although a slot is free, it waits for memory, and so would the next one.
        free = 0 if len(self) else sum(1 for _ in self._free_slots())
        put_back = (its for its, _ in self._put_back.values())
        has_any = owner in self._waiting or owner in put_back or self._reserved[owner] > 0
        if has_any and len(self) + self._reserved.total() >= limit + free:
            return False
        self._reserved[owner] += 1
        return True

    def unreserve(self, owner: Owner = None) -> None:
        """End a reservation made by `reserve`."""
        self._reserved[owner] -= 1
        if not self._reserved[owner]:
            del self._reserved[owner]

    def add(self, job_id: str, owner: Owner = None, memory: int = 0) -> None:
        """Add a job that needs `memory` bytes, behind the other jobs of its owner."""
        self._waiting.setdefault(owner, {})[job_id] = memory

    def put_back(self, job_id: str, owner: Owner = None, memory: int = 0) -> None:
        """Add a job that was taken before, at the front: it has had its owner's turn."""
        self._put_back = {job_id: (owner, memory), **self._put_back}

    def discard(self, job_id: str) -> bool:
        """Remove a waiting job; False if it is not waiting."""
        if job_id in self._put_back:
            del self._put_back[job_id]
            return True
        owners = (owner for owner, jobs in self._waiting.items() if job_id in jobs)
        for owner in islice(owners, 1):
            self._remove(owner, job_id)
            return True
        return False

    def _remove(self, owner: Owner, job_id: str) -> None:
        del self._waiting[owner][job_id]
        if not self._waiting[owner]:
            del self._waiting[owner]

    def take(self) -> tuple[str, Slot] | None:
        """Give the next job a free slot; None if no job waits, or no slot or memory is free."""
        slot = next(self._free_slots(), None)
        if slot is None or not len(self):
            return None
        if self._put_back:
            job_id, (owner, memory) = next(iter(self._put_back.items()))
        else:
            owner = min(self._waiting, key=self._turn_of)
            job_id, memory = next(iter(self._waiting[owner].items()))
        if self.memory and self._running and self.memory_promised + memory > self.memory:
            return None
        if self._put_back:
            del self._put_back[job_id]
        else:
            self._remove(owner, job_id)
            self._turns += 1
            self._last_turn[owner] = self._turns
        self._running[job_id] = (slot, owner, memory)
        return job_id, slot

    def _turn_of(self, owner: Owner) -> int:
        return self._last_turn.get(owner, 0)

    def _free_slots(self) -> Iterator[Slot]:
        busy = {slot for slot, _, _ in self._running.values()}
        return (slot for slot in self._slots if slot not in busy)

    def release(self, job_id: str) -> None:
        """Free the slot of a job that has ended."""
        self._running.pop(job_id, None)

    @property
    def waiting(self) -> list[str]:
        """The waiting jobs in the order in which they will run if no others come."""
        owners = sorted(self._waiting, key=self._turn_of)
        return [*self._put_back, *_in_turns([self._waiting[owner] for owner in owners])]

    @property
    def running(self) -> dict[str, Slot]:
        """The running jobs and their slots."""
        return {job_id: slot for job_id, (slot, _, _) in self._running.items()}

    @property
    def memory_promised(self) -> int:
        """Bytes that the running jobs need."""
        return sum(memory for _, _, memory in self._running.values())

    def held(self, owner: Owner) -> int:
        """How many jobs of an owner wait, run, or are still being received."""
        running = sum(its == owner for _, its, _ in self._running.values())
        put_back = sum(its == owner for its, _ in self._put_back.values())
        return running + put_back + len(self._waiting.get(owner, ())) + self._reserved[owner]

    def __len__(self) -> int:
        return len(self._put_back) + sum(map(len, self._waiting.values()))

    @property
    def slot_count(self) -> int:
        """How many jobs can run at a time."""
        return len(self._slots)


def _in_turns(groups: Sequence[Iterable[T]]) -> Iterator[T]:
    """The first of each group, then the second of each that has one, and so on."""
    left: Iterator[Iterator[T]] = map(iter, groups)
    for count in range(len(groups), 0, -1):
        left = cycle(islice(left, count))  # without the one that has just come to its end
        yield from map(next, left)
