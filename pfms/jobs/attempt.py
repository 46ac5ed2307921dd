"""One attempt to run a job: what the plugin is told, and what came of it. It blocks."""

import os
from pathlib import Path
from typing import Any

from pfms.errors import BadResult, DiskFull, by_code
from pfms.executors.environment import run_environment
from pfms.jobs.job import FileFacts, Job, Resultant, Segmentation
from pfms.jobs.queue import Slot
from pfms.plugin import spleenseg
from pfms.plugin.command import PluginCommand, versions
from pfms.plugin.types import PluginExit, PluginRun
from pfms.settings import Settings
from pfms.storage.disk import full_disk_is_told
from pfms.storage.files import size_and_sha256, sync_within, write_atomically
from pfms.storage.workspace import Workspace
from pfms.volumes import labels

_TAIL = 64 << 10  # bytes of the log in which the cause of a failure is looked for
_NO_ROOM = 1 << 20  # bytes free: what did not fit was larger


class Attempt:
    """Prepare it, let an executor run `run`, then judge how it ended."""

    def __init__(
        self,
        settings: Settings,
        command: PluginCommand,
        workspace: Workspace,
        job: Job,
        slot: Slot,
        executor: str,
    ) -> None:
        self._workspace = workspace
        self._tree = workspace.job(job.id)
        self._job = job
        self._device = slot.device
        self._executor = executor
        self.run = PluginRun(
            job=job.id,
            root=self._tree.root,
            argv=spleenseg.inference_argv(command.argv, slot.device, job.logits),
            environment=run_environment(settings, workspace, slot.device),
            log=self._tree.log,
            time_limit=settings.job_timeout_seconds,
            grace=settings.grace_seconds,
        )

    def prepare(self) -> dict[str, Any]:
        """Clear what an earlier attempt left and write `command.sh`; what the record says of it.

        Raises:
            DiskFull: There is no room for it.
        """
        with full_disk_is_told():
            self._tree.clear_run()
            script = spleenseg.command_script(self.run.argv, self.run.environment)
            write_atomically(self._tree.command, script.encode(), mode=0o770)
        return {
            "device": self._device,
            "executor": self._executor,
            "command": list(self.run.argv),
            "environment": dict(self.run.environment),
            "versions": versions(),
        }

    def judge(self, plugin_exit: PluginExit) -> tuple[Segmentation, list[str]]:
        """The labels that came out, checked against the volume, and warnings.

        Log and resultants are durable when it returns; the log also when it raises.

        Raises:
            PfmsError: There is no result; which error says why.
        """
        tree = self._tree
        onehot, logits = tree.root / spleenseg.ONEHOT, tree.root / spleenseg.LOGITS
        files: dict[Resultant, Path] = {"labels": tree.segmentation, "onehot": onehot}
        with full_disk_is_told():
            if tree.log.is_file():
                sync_within(tree.root, [tree.log])
            disk_full = self._workspace.free_bytes() < _NO_ROOM
            verdict = spleenseg.cause_of(
                plugin_exit,
                _tail(tree.log),
                onehot.is_file(),
                root=str(tree.root),
                disk_full=disk_full,
            )
            if verdict.error is not None:
                raise by_code(verdict.error)(verdict.detail)
            tree.segmentation.parent.mkdir(exist_ok=True)
            try:
                found = labels.write_labels(onehot, tree.volume, tree.segmentation)
            except BadResult:
                if disk_full:  # it may be cut off
                    raise DiskFull("The disk of the server was full when it was written.") from None
                raise
            if self._job.logits:
                labels.check_logits(logits)
                files["logits"] = logits
            sync_within(tree.root, files.values())
        facts = {resultant: _facts(file) for resultant, file in files.items()}
        of_labels = facts.pop("labels")
        segmentation = Segmentation(
            sha256=of_labels.sha256,
            voxels_sha256=found.voxels_sha256,
            size=of_labels.size,
            spleen_voxels=found.spleen_voxels,
            spleen_ml=found.spleen_ml,
            files=facts,
        )
        return segmentation, [verdict.warning] if verdict.warning else []


def _facts(path: Path) -> FileFacts:
    with path.open("rb") as file:
        size, sha256 = size_and_sha256(file)
    return FileFacts(size=size, sha256=sha256)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
