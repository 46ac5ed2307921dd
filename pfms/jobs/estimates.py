"""When the jobs that wait will start, if runs take as long as the last ones did."""

import heapq
from collections.abc import Iterable, Sequence


def estimate_starts(
    slots: int, remaining: Iterable[float], durations: Sequence[float]
) -> list[float]:
    """When each waiting job will start, if runs take as long as the last ones did.

    Args:
        slots: How many run at a time.
        remaining: Seconds that each running job still takes, as estimated.
        durations: Seconds that each waiting job takes, as estimated, in order.

    Returns:
        Seconds from now until each starts.
    """
    free_at = sorted(remaining)[:slots]
    free_at += [0.0] * (slots - len(free_at))
    heapq.heapify(free_at)
    starts = []
    for seconds in durations:
        starts.append(free_at[0])
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return starts
