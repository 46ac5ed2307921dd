"""What a run must leave alone in its job's folder: noted before, put right afterwards."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from pfms.jobs.own_weights import OwnWeights
from pfms.storage.inside import NotAFile
from pfms.storage.workspace import JobTree

logger = logging.getLogger(__name__)

_LOG_IS_LOST = "pfms: the plugin replaced this log; what it printed is lost.\n"


class Belongings:
    """What pfms itself keeps in a job's folder while the plugin, which could change it, runs."""

    def __init__(self, tree: JobTree, script: bytes, weights: str) -> None:
        """Note what is there just before the run.

        Args:
            tree: The job's folder.
            script: The content of `command.sh`.
            weights: The SHA-256 of the weights, which was just compared.

        Raises:
            OSError: There is no room for the run's own copy of the weights.
        """
        self._tree = tree
        self._script = script
        self._volume = _stamp(tree, tree.volume)
        self._weights = OwnWeights(tree, weights)

    def put_right(self) -> str | None:
        """After the run, remove or restore what the plugin put in the place of something of ours.

        Returns:
            What it did, for a sentence that begins with "The plugin"; None if nothing.
        """
        did = []
        try:
            self._tree.restore_access()
            did = [*self._log(), *self._record(), *self._command(), *self._input()]
            did += self._weights.put_right()
        except NotAFile:
            did = ["replaced its job's folder"]
        except FileNotFoundError:
            did = ["removed its job's folder"]
        except OSError as error:
            logger.warning(
                "job %s: its folder cannot be put right: %s", self._tree.root.name, error
            )
            did = ["left something in its job's folder that cannot be removed"]
        if did:
            logger.warning("job %s: the plugin %s", self._tree.root.name, "; ".join(did))
        return did[0] if did else None

    def _log(self) -> list[str]:
        log = self._tree.log
        try:
            self._tree.open(log, alone=True).close()
        except NotAFile as error:
            self._tree.discard(log)
            self._tree.write(log, _LOG_IS_LOST.encode())
            return [f"replaced its log: {log.name} {error.strerror}"]
        except FileNotFoundError:  # it was cancelled before it started
            pass
        return []

    def _record(self) -> list[str]:
        record = self._tree.record
        try:
            self._tree.open(record, alone=True).close()
        except FileNotFoundError as error:  # the job's next step writes it
            self._tree.discard(record)
            how = f"replaced: it {error.strerror}" if isinstance(error, NotAFile) else "removed"
            return [f"touched its record: {record.name} was {how}"]
        return []

    def _command(self) -> list[str]:
        command = self._tree.command
        with suppress(FileNotFoundError), self._tree.open(command, alone=True) as file:
            if file.read(len(self._script) + 1) == self._script:
                return []
        self._tree.discard(command)
        self._tree.write(command, self._script, mode=0o770)
        return [f"changed {command.name}"]

    def _input(self) -> list[str]:
        volume = self._tree.volume
        if _stamp(self._tree, volume) == self._volume:
            return []
        return ["changed or replaced its input volume"]


def _stamp(tree: JobTree, file: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written to; None if it is no file."""
    try:
        with tree.open(file) as opened:
            status = os.fstat(opened.fileno())
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
