"""One run by stage, seconds and memory; without the newer adaptations, then with them, in turn."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.command_line import make_tree, run_bare
from bench.figures import Figure, Task
from bench.load import DEMO_MODEL, MIB
from bench.own_share import own_stages
from bench.stage_timer import STAGES
from bench.volumes import body, clinical, content, phantom_3mm, there_is_a_real_ct
from pfms.plugin import PLUGIN
from pfms.plugin.adaptations import ADAPTATIONS, adaptations
from pfms.storage.removal import discard
from pfms.volumes.labels import labels_checksum
from tests.conftest import ROOT

# The adaptations of before those that are about what is around the network.
_BEFORE = ("keep-memory", "sleep-at-barriers", "preload", "no-workers", "igzip", "argmax-layout")


@dataclass
class _Case:
    """A volume and what is asked of it.

    Attributes:
        name: What it is.
        volume: The bytes of its `.nii.gz`.
        times: How often each way is measured.
        ways: Which of `bare` (the command line), `before` (without the newer adaptations), `now`.
        most_memory: Target of a run's peak now, MB.
        less_around: Target of what is around the network, now against before.
        runs: By way, what `stage_timer` says of each run; of the command line only as a whole.
        voxels: The checksums of the labels, by way.
    """

    name: str
    volume: bytes
    times: int
    ways: tuple[str, ...] = ("bare", "before", "now")
    most_memory: float | None = None
    less_around: float | None = None
    runs: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    voxels: dict[str, str] = field(default_factory=dict)


def measure(task: Task) -> list[Figure]:
    """Run each way in turn; all have to give the same voxels. Then the server's own stages."""
    off = task.off
    if off is None:
        off = tuple(step.name for step in ADAPTATIONS if step.name not in _BEFORE)
    figures = []
    for case in _cases(task):
        for _ in range(case.times):
            for way in case.ways:
                if off or way != "before":
                    _run(case, way, task.folder, off)
        figures += _figures(case)
        own = task.folder / "own"
        own.mkdir()
        onehot = task.folder / "now" / PLUGIN.outputs["onehot"]
        for stage, seconds in own_stages(own, case.volume, onehot, case.times).items():
            figures.append(Figure(f"{case.name}, server, {stage}", seconds, "s"))
        discard(task.folder)
    return figures


def _cases(task: Task) -> Iterator[_Case]:
    """The largest one last, and only once and now: the others would need twice the memory."""
    if task.quick:
        yield _Case("phantom", content(phantom_3mm().volume), 1)
        return
    yield _Case("phantom 512x512x100", content(clinical().volume), 3, less_around=0.5)
    if there_is_a_real_ct():
        yield _Case("body 512x512x100", body(), 3, less_around=0.5)
        yield _Case("body 512x512x400", body(400), 1, most_memory=4096)
        yield _Case("body 512x512x800", body(800), 1, ("now",), most_memory=7168)


def _run(case: _Case, way: str, folder: Path, off: tuple[str, ...]) -> None:
    tree = folder / way
    discard(tree)
    make_tree(tree, case.volume, DEMO_MODEL)
    if way == "bare":
        result = {**run_bare(tree)._asdict(), "stages": {}}
    else:
        result = _timed(tree, off if way == "before" else ())
    case.runs[way].append(result)
    case.voxels[way] = labels_checksum(tree / PLUGIN.outputs["onehot"])
    if len(set(case.voxels.values())) != 1:
        raise AssertionError(f"{case.name}: the voxels differ: {case.voxels}")


def _timed(tree: Path, without: tuple[str, ...]) -> dict[str, Any]:
    names = [step.name for step in adaptations(without)]
    said = subprocess.run(
        [sys.executable, "-m", "bench.stage_timer", str(tree), "cpu", *names],
        cwd=ROOT,
        env={**os.environ, **PLUGIN.environment(without=without)},
        capture_output=True,  # MONAI's warnings do not matter here
        check=True,
    ).stdout
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    if result["code"]:
        raise AssertionError((tree / "plugin.log").read_text()[-2000:])
    return result


def _figures(case: _Case) -> list[Figure]:
    figures = []
    around = {}
    for way, runs in case.runs.items():
        name = f"{case.name}, {way}"
        seconds = [run["seconds"] for run in runs]
        note = f"{len(runs)} times, {min(seconds):.1f} to {max(seconds):.1f} s"
        figures.append(Figure(name, median(seconds), "s", note=note))
        peak = max(run["peak"] for run in runs) / MIB
        target = case.most_memory if way == "now" else None
        figures.append(Figure(f"{name}, peak memory", peak, "MB", at_most=target))
        for stage in STAGES:
            timed = [run["stages"][stage] for run in runs if stage in run["stages"]]
            if timed:
                peak = max(each["peak"] for each in timed) / MIB
                took = median(each["seconds"] for each in timed)
                figures.append(Figure(f"{name}, {stage}", took, "s", note=f"peak {peak:,.0f} MB"))
        if way != "bare":
            around[way] = median(
                run["seconds"] - run["stages"]["network"]["seconds"] for run in runs
            )
            figures.append(Figure(f"{name}, all but the network", around[way], "s"))
    if "before" in around:
        name = f"{case.name}, all but the network, now against before"
        ratio = around["now"] / around["before"]
        figures.append(Figure(name, ratio, "x", at_most=case.less_around))
    return figures
