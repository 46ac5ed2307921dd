"""Pictures of the last results.

`bench.png` has requests, runs by stage, and every figure by its target; `gpu.png` what `bench gpu`
measured.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench import on_device, stage_timer
from bench.figures import number
from bench.machine import machine_line

_WAYS = {
    **{"bare": "#8b949e", "fresh": "#58a6ff", "warm": "#2da44e", "network alone": "#d4a72c"},
    **{"fork": "#2da44e", "kept": "#8250df"},  # a process for each run, or for many
}
_MET, _MISSED = "#2da44e", "#cf222e"
_LEAST_LABELLED = 0.03  # of the longest run

_Figures = list[dict[str, Any]]
_Parts = list[tuple[float, Callable[[Any], None]]]  # of a picture: inches, and what draws it


def draw(results: Path) -> None:
    """Write the pictures beside the JSON files that they are made of."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    if gpu := found.get("gpu"):
        figures = gpu["figures"]
        parts = _parts(figures, figures, on_device.STAGES)
        for unit in ("/s", "MB"):
            if bars := {f["name"]: f["value"] for f in figures if f["unit"] == unit}:
                parts.append((0.5 + 0.3 * len(bars), partial(_draw_bars, bars, unit)))
        device = next((f["note"] for f in figures if f["name"] == on_device.FIRST_CALL), "")
        _save(parts, f"{device}, {machine_line(gpu['machine'])}", results / "gpu.png")
    judged = [
        (f"{name}: {figure['name']}", figure)
        for name, result in found.items()
        for figure in result["figures"]
        if figure["met"] is not None
    ]
    if not judged:
        return
    requests, runs = (found.get(name, {}).get("figures", []) for name in ("speed", "stages"))
    parts = _parts(requests, runs, stage_timer.STAGES)
    parts.append((0.5 + 0.27 * len(judged), partial(_draw_targets, judged)))
    newest = max(found.values(), key=lambda result: result["machine"]["date"])
    _save(parts, machine_line(newest["machine"]), results / "bench.png")


def _parts(requests: _Figures, runs: _Figures, names: Sequence[str]) -> _Parts:
    """What draws requests, and runs by stage, where there are any."""
    parts: _Parts = []
    if times := _times(requests):
        parts.append((0.5 + 0.3 * sum(map(len, times.values())), partial(_draw_times, times)))
    if stages := _stages(runs, names):
        parts.append((1 + 0.3 * len(stages), partial(_draw_stages, names, stages)))
    return parts


def _save(parts: _Parts, title: str, target: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    heights = [height for height, _ in parts]
    figure, axes = plt.subplots(
        len(parts),
        squeeze=False,
        figsize=(11, sum(heights) + 0.5 + 0.5 * len(parts)),
        height_ratios=heights,
        layout="constrained",
    )
    for axis, (_, draw_part) in zip(axes[:, 0], parts, strict=True):
        draw_part(axis)
    figure.suptitle(title, fontsize=9)
    figure.savefig(target, dpi=100)
    plt.close(figure)


def _times(figures: _Figures) -> dict[str, dict[str, float]]:
    """Seconds by volume and way."""
    times: dict[str, dict[str, float]] = {}
    for figure in figures:
        volume, _, way = figure["name"].partition(", ")
        if figure["unit"] == "s" and way in _WAYS:
            times.setdefault(volume, {})[way] = figure["value"]
    return times


def _stages(figures: _Figures, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds by run and stage."""
    runs: dict[str, dict[str, float]] = {}
    for figure in figures:
        run, _, stage = figure["name"].rpartition(", ")
        if stage in names:
            runs.setdefault(run, {})[stage] = figure["value"]
    return runs


def _draw_times(times: dict[str, dict[str, float]], axes: Any) -> None:
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


def _draw_stages(names: Sequence[str], runs: dict[str, dict[str, float]], axes: Any) -> None:
    """As parts of the longest run of the same volume."""
    from matplotlib import colormaps

    longest: dict[str, float] = {}
    for run, stages in runs.items():
        volume = run.partition(", ")[0]
        longest[volume] = max(longest.get(volume, 0), sum(stages.values()))
    whole = [longest[run.partition(", ")[0]] for run in runs]
    left = [0.0] * len(runs)
    for index, stage in enumerate(names):
        parts = [
            stages.get(stage, 0) / most for stages, most in zip(runs.values(), whole, strict=True)
        ]
        colour = colormaps["tab20"](index % 20)
        drawn = axes.barh(list(runs), parts, left=left, label=stage, color=colour)
        labels = [
            f"{part * most:.1f}" if part > _LEAST_LABELLED else ""
            for part, most in zip(parts, whole, strict=True)
        ]
        axes.bar_label(drawn, labels, label_type="center", fontsize=7)
        left = [start + part for start, part in zip(left, parts, strict=True)]
    axes.legend(fontsize=7, ncols=6, loc="upper left", bbox_to_anchor=(0, -0.03))
    axes.set_title("one run by stage, seconds (to scale by volume)", loc="left", fontsize=10)
    axes.set_xticks([])
    _plain(axes)


def _draw_bars(bars: dict[str, float], unit: str, axes: Any) -> None:
    drawn = axes.barh(list(bars), list(bars.values()), color=_WAYS["warm"])
    labels = [f"{number(value)} {unit}" for value in bars.values()]
    axes.bar_label(drawn, labels, padding=3, fontsize=8)
    _plain(axes)


def _draw_targets(judged: list[tuple[str, dict[str, Any]]], axes: Any) -> None:
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
