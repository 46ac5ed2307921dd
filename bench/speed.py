"""One volume in every way in turn: the bare command line, each executor, the network alone."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.command_line import make_tree, run_bare
from bench.figures import Figure, Task
from bench.load import MIB, executors, infer_once, serving
from bench.volumes import body, clinical, content, phantom_3mm, real_ct, there_is_a_real_ct
from pfms.plugin import PLUGIN
from pfms.storage.removal import discard
from pfms.volumes.labels import labels_checksum
from tests.conftest import ROOT, Server


@dataclass
class _Case:
    """A volume, how often it is sent in each way, and the seconds that each took.

    `of_bare` and `of_network` are targets: the warm way against the bare command line, and against
    the network alone; `most_memory` is that of its peak, MB.
    """

    name: str
    volume: bytes
    times: int
    of_bare: float = 0.5
    of_network: float | None = None
    most_memory: float | None = None
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    peaks: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    voxels: dict[str, str] = field(default_factory=dict)


def measure(task: Task) -> list[Figure]:
    """A B C, A B C, ...; every way has to give the same voxels each time."""
    figures: list[Figure] = []
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(task.folder / name, "spleenseg", executor=name))
            for name in executors()
        }
        weights = task.folder / executors()[0] / "models" / "demo" / "model.pth"
        for case in _cases(task):
            for turn in range(case.times):
                _bare(case, task.folder / f"bare-{turn}", weights)
                for name, server in servers.items():
                    _request(case, name, server)
                _network(case, task.folder, weights)
            if len(set(case.voxels.values())) != 1:
                raise AssertionError(f"{case.name}: the voxels differ: {case.voxels}")
            figures += _figures(case, list(servers))
    return figures


def _cases(task: Task) -> Iterator[_Case]:
    """The largest one last. A quick measurement uses only the phantom."""
    yield _Case("phantom", content(phantom_3mm().volume), task.either(3, 1))
    if task.quick:
        return
    if there_is_a_real_ct():
        yield _Case("real CT", content(real_ct().volume), 5, of_network=1.3)
    yield _Case("512x512x100", content(clinical().volume), 3, of_bare=0.25)
    if there_is_a_real_ct():
        yield _Case("body 512x512x100", body(), 3, of_bare=0.35)
        yield _Case("body 512x512x400", body(400), 1, of_bare=0.4, most_memory=4096)


def _bare(case: _Case, folder: Path, weights: Path) -> None:
    make_tree(folder, case.volume, weights)
    took = run_bare(folder)
    case.seconds["bare"].append(took.seconds)
    case.peaks["bare"].append(took.peak)
    _compare(case, "bare", labels_checksum(folder / PLUGIN.outputs["onehot"]))
    discard(folder)


def _request(case: _Case, way: str, server: Server) -> None:
    seconds, voxels, job = infer_once(server, case.volume)
    case.seconds[way].append(seconds)
    _compare(case, way, voxels)
    if job["executor"] != way:
        raise AssertionError(f"it ran by {job['executor']} and not by {way}")
    case.peaks[way].append(job["peak_memory_bytes"])


def _compare(case: _Case, way: str, voxels: str) -> None:
    if case.voxels.setdefault(way, voxels) != voxels:
        raise AssertionError(f"{case.name}: {way} gives different voxels than before")


def _network(case: _Case, folder: Path, weights: Path) -> None:
    volume = folder / "alone.nii.gz"
    volume.write_bytes(case.volume)
    said = subprocess.run(
        [sys.executable, "-m", "bench.network_alone", str(volume), str(weights)],
        cwd=ROOT,
        env={**os.environ, **PLUGIN.environment()},
        capture_output=True,  # MONAI's warnings do not matter here
        check=True,
    ).stdout
    timed = json.loads(said.splitlines()[-1])
    case.seconds["network alone"].append(timed["network"])
    case.seconds["network alone, second pass"].append(timed["again"])
    case.seconds["sliding window alone"].append(timed["sliding_window"])
    case.seconds["windows"] = [timed["windows"]]


def _figures(case: _Case, ways: list[str]) -> list[Figure]:
    took = {way: median(seconds) for way, seconds in case.seconds.items()}
    windows = int(took.pop("windows"))
    spans = {w: f"{min(s):.1f} to {max(s):.1f} s" for w, s in case.seconds.items()}
    figures = [
        Figure(f"{case.name}, {way}", took[way], "s", note=f"{case.times} times, {spans[way]}")
        for way in took
    ]

    for way, peaks in case.peaks.items():
        name, most = f"{case.name}, {way}, peak memory", max(peaks) / MIB
        target = case.most_memory if way == "warm" else None
        figures.append(Figure(name, most, "MB", at_most=target))

    def ratio(one: str, other: str, at_most: float | None = None, note: str = "") -> Figure:
        name = f"{case.name}, {one} against {other}"
        return Figure(name, took[one] / took[other], "x", at_most=at_most, note=note)

    over = took["fresh"] - 1.05 * took["bare"]
    figures.append(Figure(f"{case.name}, fresh, above 1.05 x bare", over, "s", at_most=0.5))
    if "warm" in ways:
        figures += [
            ratio("warm", "bare", case.of_bare),
            ratio("warm", "fresh"),
            ratio("warm", "network alone", case.of_network, f"{windows} windows"),
        ]
    note = f"sha256 of the labels {case.voxels['bare'][:12]}"
    figures.append(Figure(f"{case.name}, ways with the same voxels", len(case.voxels), note=note))
    return figures
