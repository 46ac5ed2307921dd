"""Estimates when waiting jobs will start, from how long the last runs took."""

import heapq
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

_LAST_RUNS = 5  # per model


class Estimates:
    """How long the last runs took, in seconds from start to end."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, deque[float]] = defaultdict(
            lambda: deque(maxlen=_LAST_RUNS)
        )

    def remember(self, model_id: str, seconds: float) -> None:
        """Note how long a run took."""
        self._seconds[model_id].append(seconds)

    def expected(self, model_id: str) -> float | None:
        """The median of a model's last runs, else of all models' last runs, else None."""
        last = self._seconds.get(model_id) or [s for each in self._seconds.values() for s in each]
        return statistics.median(last) if last else None


def estimate_starts(
    slots: int, remaining: Iterable[float], durations: Sequence[float]
) -> list[float]:
    """Estimate when each waiting job will start.

    Args:
        slots: How many jobs run at a time; 0 is treated as 1.
        remaining: Seconds that each running job is expected to need still.
        durations: Seconds that each waiting job is expected to take, in the order of the queue.

    Returns:
        Seconds from now until each starts.
    """
    slots = max(1, slots)
    free_at = sorted(remaining)[:slots]
    free_at += [0.0] * (slots - len(free_at))
    heapq.heapify(free_at)
    starts = []
    for seconds in durations:
        starts.append(free_at[0])
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return starts
