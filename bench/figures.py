"""What a bench returns: figures, each with its target if it has one."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        name: What was measured.
        value: The number.
        unit: `s`, `ms`, `MB` (2**20 bytes), `x` (a ratio), `/s`, or empty for a count.
        at_most: The target, if the number should be small.
        at_least: The target, if it should be large.
        note: What a reader needs to know about it.
    """

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        if self.at_least is not None:
            return self.value >= self.at_least
        return None

    @property
    def target(self) -> str:
        """The target, for people to read."""
        if self.at_most is not None:
            return f"≤ {number(self.at_most)} {self.unit}".strip()
        if self.at_least is not None:
            return f"≥ {number(self.at_least)} {self.unit}".strip()
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True)
class Task:
    """What a bench is given.

    Attributes:
        folder: Empty, and removed afterwards.
        quick: A smaller measurement, to see that everything works; its numbers mean less.
        off: The adaptations that `stages` leaves out on its slower side; None for the newer ones.
    """

    folder: Path
    quick: bool = False
    off: tuple[str, ...] | None = None

    def either(self, whole: int, quick: int) -> int:
        """How often to do something that is done less often in a quick measurement."""
        return quick if self.quick else whole


class Skipped(Exception):
    """This bench cannot be run here; it says why."""


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quantile(values: list[float], part: float) -> float:
    """The smallest value that a share of `part` (0 to 1) of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def spread(
    name: str, seconds: list[float], *, p99_at_most: float | None = None, note: str = ""
) -> list[Figure]:
    """Median, 99th percentile and maximum of some latencies, in milliseconds.

    Args:
        name: What was measured.
        seconds: The latencies.
        p99_at_most: Target of the 99th percentile, milliseconds.
        note: Of the 99th percentile.
    """
    ms = [1000 * each for each in seconds]
    note = "; ".join(filter(None, (f"{len(ms)} requests", note)))
    return [
        Figure(f"{name}, median", median(ms), "ms"),
        Figure(f"{name}, p99", quantile(ms, 0.99), "ms", at_most=p99_at_most, note=note),
        Figure(f"{name}, maximum", max(ms), "ms"),
    ]
