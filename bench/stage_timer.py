"""A separate program that runs the plugin once, as the warm executor does, and times its stages.

`-m bench.stage_timer ROOT DEVICE [ADAPTATION ...]` loads the plugin with these adaptations, forks,
and calls the plugin's `main()` on the tree of a job at ROOT. It prints a JSON line: the exit code,
the seconds of `main()`, the peak of the run's memory (bytes), and both for each stage. A stage's
seconds are without those of the stages inside of it. Stages in two threads may overlap; their sum
then exceeds the whole.

What is timed are the outermost steps of MONAI, nibabel and the plugin: an adaptation may replace
whatever they call.
"""

import functools
import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pfms.plugin import PLUGIN
from pfms.plugin.command import resolve_command
from pfms.programs import warm_plugin

REST = "everything else"
STAGES = (
    *("weights", "copy", "read", "orient", "resample", "scale", "crop", "network"),
    *("invert", "invert: back to the grid", "argmax", "one-hot"),
    *("write", "write: lay out", "write: pack", "read again", "picture", REST),
)
"""In the order of a run."""

# Each stage; the function, by its module and its name there; and the stages around it of which it
# is a part, where it is called elsewhere too (an empty name is for outside of any).
TimedFunction = tuple[str, str, str, tuple[str, ...]]
FUNCTIONS: tuple[TimedFunction, ...] = (
    ("weights", "torch", "load", ()),
    ("copy", "shutil", "copy", ()),
    ("read", "monai.transforms.io.dictionary", "LoadImaged.__call__", ()),
    ("read", "monai.transforms.utility.dictionary", "EnsureChannelFirstd.__call__", ()),
    ("orient", "monai.transforms.spatial.dictionary", "Orientationd.__call__", ()),
    ("resample", "monai.transforms.spatial.dictionary", "Spacingd.__call__", ()),
    ("scale", "monai.transforms.intensity.dictionary", "ScaleIntensityRanged.__call__", ()),
    ("crop", "monai.transforms.croppad.dictionary", "CropForegroundd.__call__", ()),
    ("network", "spleenseg.core.neuralnet", "sliding_window_inference", ()),
    ("invert", "monai.transforms.post.dictionary", "Invertd.__call__", ()),
    ("invert: back to the grid", "monai.transforms.spatial.dictionary", "Spacingd.inverse", ()),
    ("one-hot", "monai.transforms.post.dictionary", "AsDiscreted.__call__", ()),
    ("argmax", "torch", "argmax", ("one-hot",)),
    ("write", "monai.transforms.io.dictionary", "SaveImaged.__call__", ()),
    ("write: lay out", "nibabel", "save", ("write",)),
    ("write: pack", "gzip", "GzipFile.write", ("write", "write: lay out")),
    ("read again", "monai.transforms.io.array", "LoadImage.__call__", ("",)),
    ("picture", "spleenseg.plotting.plotting", "plot_infer", ()),
)


class Stopwatch:
    """Times the calls of functions, in every thread; `clock` gives the seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._peaks: defaultdict[str, int] = defaultdict(int)
        self._spans: list[tuple[float, float]] = []  # of stages outside of any other
        self._open: defaultdict[int, list[str]] = defaultdict(list)  # by thread

    def timed(
        self, stage: str, function: Callable[..., Any], parts_of: tuple[str, ...]
    ) -> Callable[..., Any]:
        """The function; its calls are timed as a stage, or only those that are in `parts_of`."""

        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            stages = self._open[threading.get_ident()]
            around = stages[-1] if stages else ""
            if around == stage or (parts_of and around not in parts_of):
                return function(*args, **named)
            self._note_peak()
            stages.append(stage)
            started = self._clock()
            try:
                return function(*args, **named)
            finally:
                ended = self._clock()
                self._note_peak()
                stages.pop()
                with self._lock:
                    self._seconds[stage] += ended - started
                    if around:
                        self._seconds[around] -= ended - started
                    else:
                        self._spans.append((started, ended))

        return call

    def _note_peak(self) -> None:
        """Note the peak of memory since the last note, for the stages that are open."""
        with self._lock:
            peak = _peak()
            stacks = list(self._open.values())  # other threads add theirs
            for stage in {each for stages in stacks for each in stages} or {REST}:
                self._peaks[stage] = max(self._peaks[stage], peak)
            Path("/proc/self/clear_refs").write_text("5")

    def start_anew(self) -> None:
        """Forget what was measured."""
        self._note_peak()
        for kept in (self._seconds, self._peaks, self._spans):
            kept.clear()

    def result(self, started: float, ended: float) -> dict[str, Any]:
        """What was measured from `started` to `ended`."""
        self._note_peak()
        covered, until = 0.0, started
        for first, last in sorted(self._spans):
            covered += max(0.0, last - max(first, until))
            until = max(until, last)
        seconds = {**self._seconds, REST: ended - started - covered}
        return {
            "seconds": ended - started,
            "peak": max(self._peaks.values()),
            "stages": {
                stage: {"seconds": seconds[stage], "peak": self._peaks[stage]} for stage in seconds
            },
        }


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise KeyError("VmHWM")


def put_around(watch: Stopwatch, functions: Iterable[TimedFunction] = FUNCTIONS) -> None:
    """Have every function timed, as the adaptations have left it."""
    for stage, module, path, parts_of in functions:
        *owners, name = path.split(".")
        owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, name, watch.timed(stage, getattr(owner, name), parts_of))


def main(root: str, device: str, *adaptations: str) -> None:
    """Load, fork, run, report."""
    command = resolve_command(PLUGIN.name)
    order = {"entry_point": command.entry_point, "adaptations": adaptations}
    call, _ = warm_plugin.load(order)
    watch = Stopwatch()
    put_around(watch)
    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    try:
        report = os.dup(1)
        os.chdir(root)
        log = os.open("plugin.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(log, number)
        sys.argv = list(PLUGIN.argv(command.argv, device))
        started = time.perf_counter()
        code = warm_plugin.exit_code_of(call)
        result = {"code": code, **watch.result(started, time.perf_counter())}
        os.write(report, json.dumps(result).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
