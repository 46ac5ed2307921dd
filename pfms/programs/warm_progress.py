"""Tells the server how far a run is: its stage, and how much of the stage is done.

Part of the program `warm_parent.py`: imports nothing of pfms. The parent calls `watch` once, which
wraps the steps of the plugin's libraries, and each run calls `begin`. Whatever makes a step faster
can call `tell` from within that step. What a version of MONAI or nibabel lacks is not watched.
"""

import functools
import inspect
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Report = Callable[[str, int, int], None]  # stage, done, total
Step = Callable[..., object]

STAGES = ("loading", "inferring", "resampling", "writing")

# The method of each step, its stage, and how much of the stage lies before it and before its end:
# per cent of the seconds that a volume of 512 x 512 x 100 voxels takes, roughly.
_STEPS = (
    ("monai.transforms.io.dictionary:LoadImaged.__call__", "loading", 10, 45),
    ("monai.transforms.spatial.dictionary:Spacingd.__call__", "loading", 45, 90),
    ("monai.transforms.intensity.dictionary:ScaleIntensityRanged.__call__", "loading", 90, 95),
    ("monai.transforms.croppad.dictionary:CropForegroundd.__call__", "loading", 95, 100),
    ("monai.transforms.post.dictionary:Invertd.__call__", "resampling", 0, 100),
    ("monai.transforms.post.dictionary:AsDiscreted.__call__", "writing", 0, 25),
    ("monai.transforms.io.array:SaveImage.__call__", "writing", 25, 85),  # then the picture
    ("spleenseg.core.neuralnet:NeuralNet.metaTensor_toNIfTI", "writing", 90, 100),  # the logits
)
_SECONDS = 0.2  # at least, between two reports of a stage
_PIECE = 8 << 20  # bytes of an image that are packed between two calls of `tell`


class _Run:
    """How far the run of this process is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = 0  # of the run; a process that it forks tells nothing
        self._report: Report = lambda stage, done, total: None
        self._stage = 0
        self._percent = -1  # that was reported of the stage
        self._span = (0, 0)  # per cent of the stage before and after the current step
        self._reported_at = 0.0

    def begin(self, report: Report) -> None:
        """A run begins in this process; `report` must not block."""
        self._process, self._report = os.getpid(), report
        self._stage, self._percent, self._span = 0, -1, (0, 0)

    def tell(self, done: float, total: float) -> None:
        """Say that `done` of `total` parts of the current step are done, in any unit.

        Cheap, and safe to call from any thread: it neither waits nor fails. It does nothing in the
        parent, in a process that a run has forked, and outside of a step.
        """
        if self._process != os.getpid() or not self._lock.acquire(blocking=False):
            return
        try:
            first, last = self._span
            if total > 0 and first < last and time.monotonic() - self._reported_at >= _SECONDS:
                self._reach(int(first + (last - first) * min(1.0, done / total)))
        finally:
            self._lock.release()

    def enter(self, stage: str, first: int, last: int) -> None:
        """A step begins, which takes the stage from `first` to `last` per cent."""
        if self._process == os.getpid():
            with self._lock:
                if self._is_now(stage):
                    self._span = (first, last)
                    self._reach(first)

    def windows(self, done: int, total: int) -> None:
        """The network has processed `done` of `total` windows."""
        if self._process == os.getpid():
            with self._lock:
                if self._is_now("inferring"):
                    self._span, self._percent = (100, 100), 100
                    self._report("inferring", done, total)

    def _is_now(self, stage: str) -> bool:
        """Whether the run is in a stage, which may begin now; False if the stage is over."""
        number = STAGES.index(stage)
        if number > self._stage:
            self._stage, self._percent = number, -1
        return number == self._stage

    def _reach(self, percent: int) -> None:
        if percent > self._percent:
            self._percent, self._reported_at = percent, time.monotonic()
            self._report(STAGES[self._stage], percent, 100)


_run = _Run()
begin = _run.begin
tell = _run.tell


def watch() -> None:
    """Watch the steps of the plugin, which is imported. For the parent, before it forks."""
    for path, stage, first, last in _STEPS:
        owner, _, name = path.rpartition(".")
        kind = _imported(owner)
        if name in dir(kind):
            setattr(kind, name, _as_step(getattr(kind, name), stage, first, last))
    _watch_windows()
    _watch_images()


def _imported(path: str) -> Any:
    """What `module:name` is, or None if nothing has imported the module or it lacks the name."""
    module, _, name = path.partition(":")
    return getattr(sys.modules.get(module), name, None)


def _as_step(own: Step, stage: str, first: int, last: int) -> Step:
    @functools.wraps(own)
    def step(*args: Any, **named: Any) -> object:
        _run.enter(stage, first, last)
        result = own(*args, **named)
        _run.enter(stage, last, last)  # it is over
        return result

    return step


def _watch_windows() -> None:
    """Turn on MONAI's own progress bar, which is off by default, and read it."""
    inferer: Any = sys.modules.get("monai.inferers.utils")
    function = getattr(inferer, "sliding_window_inference", None)
    if function is None or not hasattr(inferer, "tqdm"):
        return
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    if defaults.get("progress") is not False or len(defaults) != len(function.__defaults__ or ()):
        return

    def bar(batches: Any) -> Iterator[int]:
        if not isinstance(batches, range):  # its buffered form, which has no total
            yield from batches
            return
        for first in batches:
            _run.windows(first, batches.stop)
            yield first
        _run.windows(batches.stop, batches.stop)

    inferer.tqdm = bar
    function.__defaults__ = tuple({**defaults, "progress": True}.values())


def _watch_images() -> None:
    """Count the bytes of an image while nibabel packs it, a piece at a time."""
    image, opener = _imported("nibabel.nifti1:Nifti1Image"), _imported("nibabel.openers:Opener")
    if image is None or opener is None:
        return
    save, own = image.to_file_map, opener.write
    written = total = 0  # bytes of the image that is being written

    @functools.wraps(save)
    def to_file_map(self: Any, *args: Any, **named: Any) -> None:
        nonlocal written, total
        written, total = 0, math.prod(self.shape) * self.get_data_dtype().itemsize
        try:
            save(self, *args, **named)
        finally:
            total = 0

    @functools.wraps(own)
    def write(self: Any, data: Any, /) -> Any:
        nonlocal written
        if not total or not isinstance(data, bytes):
            return own(self, data)
        for start in range(0, len(data), _PIECE):
            piece = memoryview(data)[start : start + _PIECE]
            own(self, piece)
            written += len(piece)
            tell(written, total)
        return len(data)

    image.to_file_map = to_file_map
    opener.write = write
