"""One picture of the last results: requests in seconds, and every figure against its target."""

import json
from pathlib import Path
from typing import Any

from bench.machine import machine_line

_WAYS = {"bare": "#8b949e", "fresh": "#58a6ff", "warm": "#2da44e", "network alone": "#d4a72c"}
_MET, _MISSED = "#2da44e", "#cf222e"


def draw(results: Path) -> None:
    """Write `bench.png` beside the JSON files that it is made of."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    judged = [
        (f"{name}: {figure['name']}", figure)
        for name, result in found.items()
        for figure in result["figures"]
        if figure["met"] is not None
    ]
    if not judged:
        return
    times = _times(found.get("speed", {}).get("figures", []))
    heights = [0.5 + 0.3 * sum(map(len, times.values())), 0.5 + 0.27 * len(judged)]
    figure, axes = plt.subplots(
        2 if times else 1,
        squeeze=False,
        figsize=(11, sum(heights) + 1.5 if times else heights[1] + 1),
        height_ratios=heights if times else None,
        layout="constrained",
    )
    if times:
        _draw_times(axes[0, 0], times)
    _draw_targets(axes[-1, 0], judged)
    newest = max(found.values(), key=lambda result: result["machine"]["date"])
    figure.suptitle(machine_line(newest["machine"]), fontsize=9)
    figure.savefig(results / "bench.png", dpi=100)
    plt.close(figure)


def _times(figures: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds by volume and way."""
    times: dict[str, dict[str, float]] = {}
    for figure in figures:
        volume, _, way = figure["name"].partition(", ")
        if figure["unit"] == "s" and way in _WAYS:
            times.setdefault(volume, {})[way] = figure["value"]
    return times


def _draw_times(axes: Any, times: dict[str, dict[str, float]]) -> None:
    bars = [
        (f"{volume}, {way}", way, s) for volume, ways in times.items() for way, s in ways.items()
    ]
    drawn = axes.barh(
        [name for name, _, _ in bars],
        [seconds for _, _, seconds in bars],
        color=[_WAYS[way] for _, way, _ in bars],
    )
    axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8)
    axes.set_title("one request, seconds (median)", loc="left", fontsize=10)
    _plain(axes)


def _draw_targets(axes: Any, judged: list[tuple[str, dict[str, Any]]]) -> None:
    """As a part of what is allowed: 1 and below is met, whichever way the target points."""
    parts = [_part(figure) for _, figure in judged]
    drawn = axes.barh(
        [name for name, _ in judged],
        parts,
        color=[_MET if figure["met"] else _MISSED for _, figure in judged],
    )
    labels = [f"{figure['value']:.3g} {figure['unit']}" for _, figure in judged]
    axes.bar_label(drawn, labels, padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_title("each figure as a part of its target (the line)", loc="left", fontsize=10)
    _plain(axes)


def _part(figure: dict[str, Any]) -> float:
    """Of the target; a hundredth to a hundred, so that all of it can be drawn."""
    value: float = figure["value"]
    most, least = figure["at_most"], figure["at_least"]
    if most is not None:
        part: float = value / most if most else 100.0 * (value > 0)
    else:
        part = least / value if value > 0 else 100.0
    return min(max(part, 0.01), 100.0)


def _plain(axes: Any) -> None:
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
