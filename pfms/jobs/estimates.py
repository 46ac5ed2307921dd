"""Estimates when waiting jobs will start and how far runs are, from what the last runs took."""

import heapq
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pfms.plugin.types import STAGES, Progress

_LAST_RUNS = 5  # per model


class Shares:
    """How much of a run each stage is.

    Args:
        seconds: What each stage takes; one that is not named takes no time.
    """

    def __init__(self, seconds: Mapping[str, float]) -> None:
        whole = sum(seconds.get(stage, 0.0) for stage in STAGES) or 1.0
        self._of = {stage: seconds.get(stage, 0.0) / whole for stage in STAGES}

    def fraction(self, progress: Progress) -> float:
        """How much of the run is done, 0 to 1; it never falls while the run goes on."""
        before = sum(self._of[stage] for stage in STAGES[: STAGES.index(progress.stage)])
        return round(min(1.0, before + self._of[progress.stage] * progress.part), 3)


# Of a volume of 512 x 512 x 100 voxels on a CPU.
DEFAULT_SHARES = Shares(
    {"loading": 2.5, "inferring": 3.0, "resampling": 2.5, "writing": 2.5, "checking": 1.0}
)


class Estimates:
    """How long the last runs took, in seconds from start to end, and how long their stages."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, deque[float]] = defaultdict(
            lambda: deque(maxlen=_LAST_RUNS)
        )
        self._shares: dict[str, Shares] = {}

    def remember(
        self, model_id: str, seconds: float, stages: Mapping[str, float] | None = None
    ) -> None:
        """Note how long a run took, and each of its stages if that is known."""
        self._seconds[model_id].append(seconds)
        if stages is not None:
            self._shares[model_id] = Shares(stages)

    def shares(self, model_id: str) -> Shares:
        """How much of a run each stage was in the model's last run, else a guess."""
        return self._shares.get(model_id, DEFAULT_SHARES)

    def expected(self, model_id: str) -> float | None:
        """The median of a model's last runs, else of all models' last runs, else None."""
        last = self._seconds.get(model_id) or [s for each in self._seconds.values() for s in each]
        return statistics.median(last) if last else None


class Need(NamedTuple):
    """What a job is expected to need: so many seconds from now or from its start, and bytes."""

    seconds: float
    memory: int = 0


def estimate_starts(
    slots: int, memory: int, running: Iterable[Need], waiting: Sequence[Need]
) -> list[float]:
    """Estimate when each waiting job will start, as `JobQueue` starts them: none passes another.

    Args:
        slots: How many jobs run at a time; 0 is treated as 1.
        memory: Bytes that jobs may use together; 0 is no limit.
        running: What the running jobs need.
        waiting: What the waiting jobs need, in the order of the queue.

    Returns:
        Seconds from now until each starts.
    """
    ends = [(need.seconds, need.memory) for need in running]
    heapq.heapify(ends)
    used = sum(size for _, size in ends)
    now, starts = 0.0, []
    for need in waiting:
        while ends and (len(ends) >= max(1, slots) or (memory and used + need.memory > memory)):
            now, freed = heapq.heappop(ends)
            used -= freed
        starts.append(now)
        heapq.heappush(ends, (now + need.seconds, need.memory))
        used += need.memory
    return starts
