"""One attempt to run a job: how the plugin is called, and how its result is judged. Blocking."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from pfms.errors import BadResult, DiskFull, OutOfMemory, PluginFailed, by_code
from pfms.executors.devices import as_the_plugin_says
from pfms.executors.environment import run_environment
from pfms.jobs.belongings import Belongings
from pfms.jobs.job import FileFacts, Job, PluginUsed, RunFacts, Segmentation
from pfms.jobs.own_weights import put_back
from pfms.jobs.queue import Slot
from pfms.plugin import PLUGIN
from pfms.plugin.command import PluginCommand, versions
from pfms.plugin.types import PluginExit, PluginRun, Resultant
from pfms.settings import Settings
from pfms.storage.disk import reporting_full_disk
from pfms.storage.files import size_and_sha256, tail_of
from pfms.storage.inside import NotAFile, unlink
from pfms.storage.workspace import Workspace
from pfms.volumes import labels
from pfms.volumes.memory import gibibytes
from pfms.volumes.reader import OnPart

_NO_ROOM = 1 << 20  # bytes: with less free, whatever the run could not write was larger
_LOOK_AT_THE_PLUGIN = "Ask the operator of this server to look at the plugin that it runs."


class Attempt:
    """Call `prepare`, have an executor do the run, then call `settle`, then `judge`."""

    def __init__(
        self, settings: Settings, command: PluginCommand, workspace: Workspace, job: Job
    ) -> None:
        self._settings = settings
        self._command = command
        self._workspace = workspace
        self._tree = workspace.job(job.id)
        self._job = job
        self._belongings: Belongings | None = None
        self._touched: str | None = None
        self._disk_full = False

    def prepare(self, slot: Slot, executor: str) -> tuple[PluginRun, RunFacts]:
        """Clear what an earlier attempt left, write `command.sh`, and describe the run.

        Raises:
            DiskFull: There is no room for it.
            PluginFailed: The volume is gone, or the weights are gone or have changed.
        """
        self._check_inputs()
        device = slot.device
        environment = run_environment(self._settings, self._workspace, device)
        traced = {"TRACEPARENT": self._job.traceparent} if self._job.traceparent else {}
        run = PluginRun(
            job=self._job.id,
            root=self._tree.root,
            argv=PLUGIN.argv(self._command.argv, as_the_plugin_says(device), self._job.resultant),
            environment={**environment, **traced},  # not in command.sh: a replay is not this run
            log=self._tree.log,
            time_limit=self._settings.job_timeout_seconds,
            grace=self._settings.grace_seconds,
            max_log_bytes=self._settings.max_log_bytes,
            max_memory=self._settings.max_run_memory,
            memory=self._job.estimated_memory_bytes or 0,
            slot=f"{device}/{slot.index}",
            # What a run leaves in its process reaches no other owner, and no other weights.
            kind=json.dumps([self._job.owner, self._job.model.sha256]),
        )
        with reporting_full_disk():
            self._tree.clear_run()
            script = PLUGIN.command_script(run.argv, environment).encode()
            self._tree.write(self._tree.command, script, mode=0o770)
            self._belongings = Belongings(self._tree, script, self._job.model.sha256)
        found = versions()
        is_ours = self._command.kind == "entry-point" and self._command.name == PLUGIN.name
        facts = RunFacts(
            device=device,
            executor=executor,
            plugin=PluginUsed(
                name=PLUGIN.name, version=found.get(PLUGIN.name) if is_ours else None
            ),
            command=run.argv,
            environment=environment,
            versions=found,
        )
        return run, facts

    def _check_inputs(self) -> None:
        """Check that the weights still have the checksum that the job's record names."""
        try:
            put_back(self._tree)
            with self._tree.open(self._tree.model) as model:
                found = size_and_sha256(model)[1]
            self._tree.open(self._tree.volume).close()
        except FileNotFoundError:
            raise PluginFailed(
                "The volume or the weights of this job are no longer in its folder.",
                "Send the volume again.",
            ) from None
        if found != self._job.model.sha256:
            raise PluginFailed(
                "The weights in this job's folder are not those that it was accepted with.",
                "Send the volume again, and tell the operator of this server about the change.",
            )

    def settle(self) -> None:
        """After a run, however it ended, put right what it did to the rest of its job's folder."""
        self._disk_full = self._workspace.free_bytes() < _NO_ROOM  # before anything is removed
        if self._belongings is not None:
            self._touched = self._belongings.put_right()
        for name in PLUGIN.copies:  # they keep all the texts of the volume's header
            unlink(self._tree.root, name)

    def judge(self, plugin_exit: PluginExit, on_part: OnPart) -> tuple[Segmentation, list[str]]:
        """Make the labels from the plugin's output and check them; also returns warnings.

        When this returns, the log and the resultants are durable; when it raises, the log is.
        `on_part` gets the part of the output that has been checked, 0 to 1.

        Raises:
            PfmsError: There is no result; the kind of error says why.
        """
        tree = self._tree
        onehot, logits = (tree.root / PLUGIN.outputs[kind] for kind in ("onehot", "logits"))
        files: dict[Resultant, Path] = {"labels": tree.segmentation, "onehot": onehot}
        with reporting_full_disk():
            verdict = PLUGIN.cause_of(
                plugin_exit,
                self._end_of_log(),
                self._is_there(onehot),
                root=str(tree.root),
                disk_full=self._disk_full,
            )
            if self._touched is not None and verdict.error in (None, BadResult.code):
                raise PluginFailed(f"The plugin {self._touched}.", _LOOK_AT_THE_PLUGIN)
            if verdict.error is not None:
                remedy = None
                if verdict.error == OutOfMemory.code:
                    remedy = self._remedy_for_memory(plugin_exit.peak_memory)
                raise by_code(verdict.error)(verdict.detail, remedy)
            tree.new_result()
            seconds = self._settings.judge_seconds
            files_to_read = 2 if self._job.logits else 1
            try:
                with (
                    self._written(onehot) as result,
                    tree.open(tree.volume) as volume,
                    tree.writing(tree.segmentation, durable=False) as target,  # synced below
                ):
                    found = labels.write_labels(
                        result,
                        volume,
                        target,
                        seconds=seconds,
                        on_part=lambda part: on_part(part / files_to_read),
                    )
            except BadResult:
                if self._disk_full:  # it may be cut off
                    raise DiskFull("The disk of the server was full when it was written.") from None
                raise
            if self._job.logits:
                with self._written(logits) as scores:
                    labels.check_logits(
                        scores,
                        self._settings.max_grid_voxels,
                        seconds=seconds,
                        on_part=lambda part: on_part((1 + part) / files_to_read),
                    )
                files["logits"] = logits
            tree.sync(*files.values())
            if self._disk_full and self._workspace.free_bytes() < _NO_ROOM:
                # Its end could not be recorded while what it wrote takes all the room.
                raise DiskFull("The run filled the disk of the server.")
        facts = {resultant: self._facts(file) for resultant, file in files.items()}
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

    def _remedy_for_memory(self, peak: int | None) -> str:
        held = "" if peak is None else f" It held {gibibytes(peak)} at its peak."
        estimate = self._job.estimated_memory_bytes
        expected = "" if estimate is None else f" {gibibytes(estimate)} had been estimated."
        return f"{OutOfMemory.remedy}{held}{expected}"

    def _end_of_log(self) -> str:
        """The end of the log, which is durable then; empty if there is none."""
        tree = self._tree
        try:
            tree.sync(tree.log)
            with tree.open(tree.log) as log:
                return tail_of(log)
        except FileNotFoundError:
            return ""

    def _is_there(self, file: Path) -> bool:
        """Whether the plugin wrote a file, or left something else in its place."""
        try:
            self._tree.open(file).close()
        except NotAFile:
            return True
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _written(self, file: Path) -> Iterator[BufferedReader]:
        """Open a file that the plugin wrote.

        Raises:
            BadResult: There is none, or something else: a link, a FIFO, another file's second name.
        """
        try:
            opened = self._tree.open(file, alone=True)
        except NotAFile as error:
            why = f"{error.filename} {error.strerror}"
            raise BadResult(f"The plugin's {file.name} cannot be used: {why}.") from None
        except FileNotFoundError:
            raise BadResult(f"The plugin did not write {file.name}.") from None
        with opened:
            yield opened

    def _facts(self, file: Path) -> FileFacts:
        with self._tree.open(file) as opened:
            size, sha256 = size_and_sha256(opened)
        return FileFacts(size=size, sha256=sha256)
