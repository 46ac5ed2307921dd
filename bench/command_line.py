"""The plugin's bare command line, as a person would type it, on the tree of a job."""

import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from pfms.plugin import PLUGIN
from pfms.plugin.command import resolve_command


class Took(NamedTuple):
    """Seconds of a run, and the most memory that one of its processes held, bytes."""

    seconds: float
    peak: int


def make_tree(folder: Path, volume: bytes, weights: Path) -> None:
    """Make the tree of a job that has not run."""
    for name, content in ((PLUGIN.volume, volume), (PLUGIN.weights, weights.read_bytes())):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "output").mkdir()


def run_bare(folder: Path, device: str = "cpu") -> Took:
    """Run it, with nothing added to the environment."""
    argv = PLUGIN.argv(resolve_command(PLUGIN.name).argv, device)
    with (folder / "log").open("wb") as log:
        started = time.perf_counter()
        process = subprocess.Popen(argv, cwd=folder, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise AssertionError((folder / "log").read_text()[-2000:])
    return Took(seconds, used.ru_maxrss * 1024)
