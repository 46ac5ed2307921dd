"""When the jobs that wait will start, if runs take as long as the last ones did."""

import heapq
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

_LAST_RUNS = 5  # of each model


class Estimates:
    """What the last runs took, in seconds from start to end."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, deque[float]] = defaultdict(
            lambda: deque(maxlen=_LAST_RUNS)
        )

    def remember(self, model_id: str, seconds: float) -> None:
        """Note how long a run took."""
        self._seconds[model_id].append(seconds)

    def expected(self, model_id: str) -> float | None:
        """The median of the last runs of a model (of any model, where it has none), or None."""
        last = self._seconds.get(model_id) or [s for each in self._seconds.values() for s in each]
        return statistics.median(last) if last else None


def estimate_starts(
    slots: int, remaining: Iterable[float], durations: Sequence[float]
) -> list[float]:
    """When each waiting job will start, if runs take as long as the last ones did.

    Args:
        slots: How many run at a time; with none, the estimate is that of one.
        remaining: Seconds that each running job still takes, as estimated.
        durations: Seconds that each waiting job takes, as estimated, in order.

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
