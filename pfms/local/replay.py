"""Runs a job's saved command again, and says whether its voxels match the record."""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from pfms.clock import utc_now
from pfms.errors import PfmsError, by_code
from pfms.jobs.job import Job, Segmentation
from pfms.plugin import PLUGIN
from pfms.plugin.command import versions
from pfms.plugin.types import PluginExit
from pfms.processes.output import keeping_output
from pfms.processes.run import run_in_group
from pfms.storage.files import size_and_sha256, tail_of
from pfms.storage.removal import discard
from pfms.storage.workspace import JobTree
from pfms.volumes.labels import LabelFacts, write_labels
from pfms.volumes.reader import NiftiReader

_SECONDS = 7 * 24 * 3600.0  # a person waits, and has Ctrl-C
_GRACE_SECONDS = 2.0
_MAX_LOG_BYTES = 16 << 20


class CannotReplay(Exception):
    """The job in the folder cannot be run again.

    Attributes:
        detail: Why, in one sentence.
        remedy: What to do about it, in one sentence.
    """

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


@dataclass(frozen=True)
class Difference:
    """Of two label volumes: how many voxels differ, of how many, and their Dice.

    The Dice is 1 if both are empty.
    """

    differing: int
    voxels: int
    dice: float


@dataclass(frozen=True)
class Replay:
    """The outcome of running a job again.

    Attributes:
        job: Its ID.
        same: Whether the voxels match the record.
        seconds: How long the rerun took.
        recorded_sha256: Of the labels' voxels in the record.
        voxels_sha256: Of the rerun's; None if it failed.
        error: Why it failed, one line; None if it did not.
        difference: Between both results, if they differ and the recorded one is in the folder.
        changed: What differs from the record, by name: as it was, as it is.
        rerun: The folder of what the rerun wrote; None if it was removed.
    """

    job: str
    same: bool
    seconds: float
    recorded_sha256: str
    voxels_sha256: str | None = None
    error: str | None = None
    difference: Difference | None = None
    changed: dict[str, tuple[str, str]] = field(default_factory=dict)
    rerun: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def replay(
    folder: Path, *, keep: bool = False, on_start: Callable[[], None] | None = None
) -> Replay:
    """Run `command.sh` of a job's folder into a fresh folder in it, and compare.

    Args:
        folder: Of a job, or of an unpacked bundle with its voxels.
        keep: Keep what the rerun wrote, even if it is the same.
        on_start: Called just before the rerun starts.

    Raises:
        CannotReplay: It is not such a folder, its job has no result, or its voxels are gone.
        KeyboardInterrupt: The rerun was interrupted; none of its processes is left.
    """
    tree = JobTree(folder.resolve())
    job, recorded = _recorded(tree)
    rerun = tree.root / f"rerun-{utc_now():%Y%m%d-%H%M%S}-{uuid4().hex[:4]}"
    try:
        rerun.mkdir()
    except OSError as error:
        raise CannotReplay(
            f"the rerun cannot be written to {tree.root}: {error.strerror}", "Copy the folder."
        ) from None
    if on_start is not None:
        on_start()
    kept = False
    try:
        plugin_exit = asyncio.run(_run(tree, rerun))
        facts, failure = _judge(tree, rerun, plugin_exit)
        same = facts is not None and facts.voxels_sha256 == recorded.voxels_sha256
        kept = keep or not same
        return Replay(
            job=job.id,
            same=same,
            seconds=round(plugin_exit.seconds, 3),
            recorded_sha256=recorded.voxels_sha256,
            voxels_sha256=facts.voxels_sha256 if facts else None,
            error=failure,
            difference=None if same or facts is None else _difference(tree, rerun),
            changed={} if same else _changed(tree, job),
            rerun=str(rerun) if kept else None,
        )
    finally:
        if not kept:
            discard(rerun)


def _recorded(tree: JobTree) -> tuple[Job, Segmentation]:
    """The record of a job that can be run again.

    Raises:
        CannotReplay: It cannot.
    """
    try:
        with tree.open(tree.record) as record:
            job = Job.model_validate_json(record.read())
    except OSError:
        raise CannotReplay(
            f"{tree.root} is not a job's folder: it has no job.json",
            "Name a folder below jobs/ of a workspace, or an unpacked bundle.",
        ) from None
    except ValueError:
        raise CannotReplay(
            f"the job.json in {tree.root} is damaged, or was written by another version of pfms",
            "command.sh runs it again without a record.",
        ) from None
    if job.segmentation is None:
        why = f" ({job.error.code})" if job.error else ""
        raise CannotReplay(
            f"the job has no result to compare with: it is {job.state}{why}",
            "If it ever ran, command.sh runs it again.",
        )
    missing = [
        str(file.relative_to(tree.root))
        for file in (tree.command, tree.volume, tree.model)
        if not tree.has(file)
    ]
    if missing:
        purged = "its voxels were purged: " if job.purged_at else ""
        raise CannotReplay(
            f"the job cannot be run again: {purged}missing {', '.join(missing)}",
            "A bundle with ?voxels=true holds all that is needed.",
        )
    return job, job.segmentation


async def _run(tree: JobTree, rerun: Path) -> PluginExit:
    # Look for the plugin beside our own Python first, as the service does.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    async with keeping_output(rerun / tree.log.name, _MAX_LOG_BYTES) as output:
        return await run_in_group(
            ("/bin/sh", str(tree.command), str(rerun / tree.output.name)),
            job=f"replay-{uuid4()}",
            cwd=tree.root,
            environment={"PATH": path},
            output=output,
            time_limit=_SECONDS,
            grace=_GRACE_SECONDS,
        )


def _judge(
    tree: JobTree, rerun: Path, plugin_exit: PluginExit
) -> tuple[LabelFacts | None, str | None]:
    """The labels of the rerun, or why there are none; as the service judges a run."""
    made = JobTree(rerun)
    onehot = made.root / PLUGIN.outputs["onehot"]
    tail = ""
    with suppress(FileNotFoundError), made.open(made.log) as log:
        tail = tail_of(log)
    verdict = PLUGIN.cause_of(plugin_exit, tail, made.has(onehot), root=str(tree.root))
    own = [line for line in tail.splitlines() if line.startswith("command.sh: ")]
    if plugin_exit.code and own:  # the script itself gave up, for example without a plugin
        return None, own[-1]
    try:
        if verdict.error is not None:
            raise by_code(verdict.error)(verdict.detail)
        with (
            made.open(onehot) as result,
            tree.open(tree.volume) as volume,
            made.writing(rerun / tree.segmentation.name) as labels,
        ):
            return write_labels(result, volume, labels), None
    except PfmsError as error:
        return None, f"{error.code}: {error.detail}"


def _difference(tree: JobTree, rerun: Path) -> Difference | None:
    """Compare the rerun's labels with the recorded ones, if those are there and readable."""
    differing = common = marked = 0
    try:
        with (
            tree.open(tree.segmentation) as old,
            JobTree(rerun).open(rerun / tree.segmentation.name) as new,
            NiftiReader(old) as then,
            NiftiReader(new) as now,
        ):
            voxels = prod(then.shape)
            if then.shape != now.shape:
                return None
            for one, other in zip(then.values(voxels), now.values(voxels), strict=True):
                differing += int(np.count_nonzero(one != other))
                common += int(np.count_nonzero((one != 0) & (other != 0)))
                marked += int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    except (PfmsError, FileNotFoundError):
        return None
    return Difference(differing, voxels, 2 * common / marked if marked else 1.0)


def _changed(tree: JobTree, job: Job) -> dict[str, tuple[str, str]]:
    """What can change the voxels and differs from the record."""
    now = versions()
    with tree.open(tree.model) as model:
        now["weights"] = size_and_sha256(model)[1]
    then = {**job.versions, "weights": job.model.sha256}
    return {
        name: (then.get(name, "none"), now.get(name, "none"))
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    }
