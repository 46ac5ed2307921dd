"""A GPU: its start, transfers and network, every way in turn, and slots with their memory.

`fork` is the warm executor as it is by default, with a process for each run; `kept` is the same
with `PFMS_RUNS_PER_PROCESS`, so that a process keeps the device for the slot's next run.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.command_line import make_tree, run_bare
from bench.figures import Figure, Skipped, Task
from bench.load import (
    DEMO_MODEL,
    MIB,
    family,
    infer_once,
    proportional,
    serving,
    work_through,
)
from bench.on_device import DEVICE, FIRST_CALL, STAGES
from bench.volumes import clinical, content, phantom_3mm, real_ct, there_is_a_real_ct
from pfms.executors.devices import driver_gpus, torch_cuda_version
from pfms.plugin import PLUGIN
from pfms.storage.removal import discard
from pfms.volumes.labels import labels_checksum
from tests.conftest import ROOT

_SAMPLE_SECONDS = 0.05

FIRST, LATER = "first run of a process", "later run"


def measure(task: Task) -> Iterator[Figure]:
    """Of the first GPU; skipped where torch can use none."""
    if torch_cuda_version() is None:
        raise Skipped("the installed torch is built for the CPU alone")
    if not driver_gpus()[0]:
        raise Skipped("torch sees no CUDA device")
    yield from measure_on("cuda:0", task, _volumes(task))


def measure_on(
    device: str, task: Task, volumes: Mapping[str, bytes], slots: Sequence[int] = (1, 2, 4)
) -> Iterator[Figure]:
    """On any device. What has been measured is kept if something later fails.

    Args:
        device: As torch names it.
        task: Where, and how thoroughly.
        volumes: `.nii.gz` by name. All are profiled and sent; the last one is sent to the slots.
        slots: How many on the device.
    """
    starts: list[float] = []
    for name, volume in volumes.items():
        reports = [
            _profile(task.folder / f"{name}-profile-{n}", device, volume, task.either(3, 2))
            for n in range(task.either(3, 1))
        ]
        starts += [report["runs"][0]["stages"][DEVICE]["seconds"] for report in reports]
        yield from _of_profiles(name, reports)
    yield Figure(FIRST_CALL, median(starts), "s", note=reports[0]["device"])
    for name, volume in volumes.items():
        yield from _every_way(device, task, name, volume)
    for count in slots:
        yield from _with_slots(device, task, volume, count, _memory_of(device, reports[0]["uuid"]))


def _volumes(task: Task) -> dict[str, bytes]:
    if task.quick:
        return {"phantom": content(phantom_3mm().volume)}
    cts = {"real CT": content(real_ct().volume)} if there_is_a_real_ct() else {}
    return {**cts, "512x512x100": content(clinical().volume)}


# --- by stage ------------------------------------------------------------------------------------


def _profile(folder: Path, device: str, volume: bytes, runs: int) -> dict[str, Any]:
    """What `bench.on_device` says of some runs in one process."""
    make_tree(folder, volume, DEMO_MODEL)
    line = [sys.executable, "-m", "bench.on_device", str(folder), device, str(runs)]
    environment = {**os.environ, **PLUGIN.environment()}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    log = folder / "plugin.log"
    if done.returncode or not done.stdout.strip():
        said = log.read_text() if log.exists() else done.stderr
        raise AssertionError(f"the profile on {device} failed: {said[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if any(run["code"] for run in report["runs"]):
        raise AssertionError(f"a run on {device} failed: {log.read_text()[-2000:]}")
    return report


def _of_profiles(volume: str, reports: list[dict[str, Any]]) -> Iterator[Figure]:
    for which, runs in (
        (FIRST, [report["runs"][0] for report in reports]),
        (LATER, [run for report in reports for run in report["runs"][1:]]),
    ):
        for stage in STAGES:
            timed = [run["stages"][stage]["seconds"] for run in runs if stage in run["stages"]]
            if timed:
                note = f"{len(timed)} times"
                yield Figure(f"{volume}, {which}, {stage}", median(timed), "s", note=note)
    peak = max(run["reserved"] for report in reports for run in report["runs"])
    if peak:
        note = "without its context"
        yield Figure(f"{volume}, peak of torch's device memory", peak / MIB, "MB", note=note)


# --- every way in turn ---------------------------------------------------------------------------


def _every_way(device: str, task: Task, name: str, volume: bytes) -> Iterator[Figure]:
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    voxels: defaultdict[str, set[str]] = defaultdict(set)
    times = task.either(5, 1)
    with ExitStack() as stack:
        servers = {
            way: stack.enter_context(
                serving(task.folder / f"{name}-{way}", "spleenseg", devices=device, **settings)
            )
            for way, settings in _WAYS.items()
        }
        for turn in range(times):
            tree = task.folder / f"{name}-bare-{turn}"
            make_tree(tree, volume, DEMO_MODEL)
            seconds["bare"].append(run_bare(tree, device).seconds)
            voxels["bare"].add(labels_checksum(tree / PLUGIN.outputs["onehot"]))
            discard(tree)
            for way, server in servers.items():
                if way == "kept":  # its process may have waited for too long, or is the first one
                    infer_once(server, volume)
                took, checksum, _job = infer_once(server, volume)
                seconds[way].append(took)
                voxels[way].add(checksum)
    took_by = {way: median(each) for way, each in seconds.items()}
    for way, each in seconds.items():
        spread = f"{times} times, {min(each):.2f} to {max(each):.2f} s"
        yield Figure(f"{name}, {way}", took_by[way], "s", note=spread)
    for way in servers:
        yield Figure(f"{name}, {way} against bare", took_by[way] / took_by["bare"], "x")
    note = "of " + ", ".join(f"{way} {len(found)}" for way, found in voxels.items())
    shared = servers["kept"].log.read_text().count(_IN_THE_SAME_PROCESS)
    yield Figure(f"{name}, kept, runs in the process of another", shared, at_least=times)
    different = len(set().union(*voxels.values()))
    yield Figure(f"{name}, different label maps", different, at_most=1, note=note)


_WAYS: dict[str, dict[str, Any]] = {
    "fork": {"executor": "warm"},
    "kept": {"executor": "warm", "runs_per_process": 1000},
}
_IN_THE_SAME_PROCESS = " of its process\n"  # ends a line of the server's log


# --- slots ---------------------------------------------------------------------------------------


def _with_slots(
    device: str, task: Task, volume: bytes, slots: int, used: Callable[[int], int]
) -> Iterator[Figure]:
    """Throughput, and the peak of memory while all slots work."""
    jobs = task.either(8, 1) * slots
    s = "s" * (slots > 1)
    for way, settings in _WAYS.items():
        folder = task.folder / f"slots-{way}-{slots}"
        more = {**settings, "jobs_per_device": slots, "devices": device}
        with serving(folder, "spleenseg", **more) as server:
            pid = server.process.pid
            before = used(pid)
            with _peak_of(partial(used, pid)) as peak:
                work_through(server, volume, slots, slots)
                rate = jobs / work_through(server, volume, jobs, slots + 2)
            waiting = used(pid) - before
        yield Figure(f"{way}, {slots} slot{s}", rate, "/s", note=f"{jobs} jobs")
        note = "of the device" if device != "cpu" else "of the machine (PSS)"
        most, name = peak() - before, f"{way}, {slots} slot{s}, memory of each"
        yield Figure(name, most / slots / MIB, "MB", note=note)
        if way == "kept":
            yield Figure(f"{name} while it waits", waiting / slots / MIB, "MB", note=note)


@contextmanager
def _peak_of(used: Callable[[], int]) -> Iterator[Callable[[], int]]:
    """Look again and again how much is used; gives a function that returns the most."""
    most = used()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(_SAMPLE_SECONDS):
            most = max(most, used())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: most
    finally:
        done.set()
        thread.join()


def _memory_of(device: str, uuid: str) -> Callable[[int], int]:
    """How to ask for the bytes in use: on the whole GPU, or by a server's processes on a CPU."""
    if device == "cpu":
        return lambda pid: sum(proportional(process.pid) for process in family(pid))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pynvml
    pynvml.nvmlInit()
    handle = None
    with contextlib.suppress(pynvml.NVMLError):  # CUDA may count the GPUs otherwise than NVML
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    if handle is None:
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2] or 0))
    return lambda pid: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
