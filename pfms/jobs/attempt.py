"""One attempt to run a job: what the plugin is told, and what came of it. It blocks."""

import hashlib
import os
from pathlib import Path
from typing import Any

from pfms.errors import BadResult, DiskFull, by_code
from pfms.executors.environment import run_environment
from pfms.jobs.job import Job, Segmentation
from pfms.jobs.queue import Slot
from pfms.plugin import spleenseg
from pfms.plugin.command import PluginCommand, versions
from pfms.plugin.types import PluginExit, PluginRun
from pfms.settings import Settings
from pfms.storage.disk import full_disk_is_told
from pfms.storage.files import write_atomically
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

        Raises:
            PfmsError: There is no result; which error says why.
        """
        onehot = self._tree.root / spleenseg.ONEHOT
        disk_full = self._workspace.free_bytes() < _NO_ROOM
        verdict = spleenseg.cause_of(
            plugin_exit,
            _tail(self._tree.log),
            onehot.is_file(),
            root=str(self._tree.root),
            disk_full=disk_full,
        )
        if verdict.error is not None:
            raise by_code(verdict.error)(verdict.detail)
        with full_disk_is_told():
            self._tree.segmentation.parent.mkdir(exist_ok=True)
            try:
                facts = labels.write_labels(onehot, self._tree.volume, self._tree.segmentation)
            except BadResult:
                if disk_full:  # it may be cut off
                    raise DiskFull("The disk of the server was full when it was written.") from None
                raise
        if self._job.logits:
            labels.check_logits(self._tree.root / spleenseg.LOGITS)
        with self._tree.segmentation.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        segmentation = Segmentation(
            sha256=digest,
            voxels_sha256=facts.voxels_sha256,
            size=self._tree.segmentation.stat().st_size,
            spleen_voxels=facts.spleen_voxels,
            spleen_ml=facts.spleen_ml,
        )
        return segmentation, [verdict.warning] if verdict.warning else []


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
