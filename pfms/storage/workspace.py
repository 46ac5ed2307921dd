"""The tree on disk: where each file is, how jobs are published in it, and how they are removed."""

import fcntl
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import IO, Any

from pfms.errors import StartError
from pfms.storage import inside
from pfms.storage.files import make_folder, sync_folder, sync_tree, write_atomically
from pfms.storage.removal import discard, restore_access

log = logging.getLogger(__name__)

_UUID_LENGTH = 36
_UPLOAD_NAME = re.compile(r"[0-9a-f]{32}(\.[0-9a-f]{32}\.part)?")


@dataclass(frozen=True)
class JobTree:
    """The folder of one job. People can read it without the service: see workspace/README.md."""

    root: Path

    @property
    def volume(self) -> Path:
        """The uploaded volume, in the form that the plugin gets: gzipped and 3-D."""
        return self.root / "input" / "imagesTs" / "input.nii.gz"

    @property
    def model(self) -> Path:
        """The weights as they were when the job was accepted."""
        return self.root / "input" / "model.pth"

    @property
    def output(self) -> Path:
        """The plugin's outputdir, unchanged."""
        return self.root / "output"

    @property
    def segmentation(self) -> Path:
        """The labels."""
        return self.root / "result" / "segmentation.nii.gz"

    @property
    def command(self) -> Path:
        """A script that repeats the run."""
        return self.root / "command.sh"

    @property
    def log(self) -> Path:
        """What the plugin wrote to stdout and stderr."""
        return self.root / "plugin.log"

    @property
    def record(self) -> Path:
        """The job's record."""
        return self.root / "job.json"

    def lay_out(self) -> None:
        """Make the folders that a job has before it runs."""
        self.volume.parent.mkdir(parents=True)

    # --- reading and writing ---------------------------------------------------------------
    # The plugin could write anything into the folder: nothing in it is reached by a link.

    def open(self, file: Path, *, alone: bool = False) -> BufferedReader:
        """Open one of the folder's files.

        Args:
            file: Below `root`.
            alone: Refuse a hard link to another file.

        Raises:
            NotAFile: It is a link, a FIFO, a folder or the like, or may not be read.
            FileNotFoundError: There is no such file.
        """
        return inside.open_file(self.root, file.relative_to(self.root), alone=alone)

    def has(self, file: Path) -> bool:
        """Whether there is such a file, and `open` could open it."""
        return inside.is_file(self.root, file.relative_to(self.root))

    def writing(
        self, file: Path, *, durable: bool = True
    ) -> AbstractContextManager[BufferedWriter]:
        """Give a new file to write to, as `inside.writing`."""
        return inside.writing(self.root, file.relative_to(self.root), durable=durable)

    def write(self, file: Path, content: bytes, mode: int = 0o660, *, durable: bool = True) -> None:
        """Write one of the folder's files, so that it appears whole, as `inside.writing`."""
        with self.writing(file, durable=durable) as part:
            os.fchmod(part.fileno(), mode)
            part.write(content)

    def copy(self, file: Path, target: Path) -> None:
        """Copy one of the folder's files to a new one."""
        with self.open(file) as opened, target.open("xb") as new:
            shutil.copyfileobj(opened, new, 1 << 20)

    def link_or_copy(self, file: Path, target: Path) -> None:
        """Make `target` a hard link to one of the folder's files, or a copy, as `inside`."""
        inside.link_or_copy(self.root, file.relative_to(self.root), target)

    def sync(self, *files: Path) -> None:
        """Make files and their names durable."""
        inside.sync(self.root, [file.relative_to(self.root) for file in files])

    # --- removing --------------------------------------------------------------------------

    def restore_access(self) -> None:
        """Restore our access to the folder itself, of which a program may have taken some away."""
        restore_access(self.root)

    def discard(self, file: Path) -> None:
        """Remove what is in the place of a file in `root`, whatever it is."""
        with self._opened() as folder:
            discard(file.name, folder)

    def clear_run(self) -> None:
        """Remove what an earlier attempt left and make an empty outputdir.

        Raises:
            OSError: Something cannot be removed, and could be mistaken for the next run's output.
        """
        with self._opened() as folder:
            left = [name for name in _names_in(folder) if inside.is_part_name(name)]
            for name in (self.output.name, self.segmentation.parent.name, self.log.name, *left):
                discard(name, folder)
            os.mkdir(self.output.name, dir_fd=folder)

    def clear_output(self) -> None:
        """Free the space of what a run wrote, as far as possible; its log stays."""
        try:
            with self._opened() as folder:
                for name in (self.output.name, self.segmentation.parent.name):
                    discard(name, folder)
        except OSError as error:
            log.warning(
                "job %s: some output cannot be removed: %s",
                self.root.name,
                error,
                extra={"job": self.root.name},
            )

    def clear_voxels(self) -> None:
        """Remove, durably, everything but command, log and record: volumes, weights, any rerun.

        Raises:
            OSError: Something cannot be removed.
        """
        kept = {self.command.name, self.log.name, self.record.name}
        with suppress(FileNotFoundError), self._opened() as folder:
            for name in _names_in(folder):
                if name not in kept:
                    discard(name, folder)
            os.fsync(folder)

    def new_result(self) -> None:
        """Make an empty folder for the labels, whatever is in its place.

        Raises:
            OSError: Something cannot be removed.
        """
        with self._opened() as folder:
            discard(self.segmentation.parent.name, folder)
            os.mkdir(self.segmentation.parent.name, dir_fd=folder)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder's descriptor, with our access to it restored."""
        restore_access(self.root)
        with inside.opened_folder(self.root) as folder:
            yield folder


def _names_in(folder: int) -> list[str]:
    return os.listdir(folder)


class Workspace:
    """The whole tree, used by one server at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uploads = self.root / "uploads"
        self.models = self.root / "models"
        self.jobs = self.root / "jobs"
        self._lock: IO[str] | None = None

    def make(self) -> None:
        """Make any missing folders, durably.

        Raises:
            StartError: The workspace is not writable.
        """
        try:
            make_folder(self.root)
            for folder in (self.uploads, self.models, self.jobs):
                folder.mkdir(exist_ok=True)
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(13, "Permission denied", str(folder))
            sync_folder(self.root)
        except OSError as error:
            raise self._not_writable(error) from None

    def _not_writable(self, error: OSError) -> StartError:
        return StartError(
            f"The workspace {self.root} is not writable: {error.strerror}.",
            "Set PFMS_WORKSPACE to a folder that this user can write to.",
        )

    def open(self) -> None:
        """Make the folders, take the lock and remove what an earlier server was receiving.

        Raises:
            StartError: The workspace is not writable, or another server uses it.
        """
        self.make()
        try:
            lock = (self.root / "pfms.lock").open("a+")
        except OSError as error:
            raise self._not_writable(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read(64).strip() or "of another host"
            lock.close()
            raise StartError(
                f"Another pfms (process {holder}) is using the workspace {self.root}.",
                "Stop it, or set PFMS_WORKSPACE to another folder.",
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        for half in self.root.glob(".state.json.*.part"):
            half.unlink()
        for left in self.uploads.iterdir():
            if not _UPLOAD_NAME.fullmatch(left.name):
                log.warning("%s does not belong to pfms and is left alone", left)
                continue
            try:
                discard(left)
            except OSError as error:  # this must not stop the start
                log.warning(
                    "%s was left by an earlier server and cannot be removed: %s", left, error
                )

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def mark(self) -> str:
        """What every process of this workspace carries in its environment.

        It is not the path, because two containers that see each other's processes may have
        different workspaces at the same path. The workspace must have been made.
        """
        status = self.root.stat()
        return f"{status.st_dev:x}-{status.st_ino:x}"

    def new_upload(self) -> Path:
        """A new path under `uploads/`, on the same file system as `jobs/`."""
        return self.uploads / uuid.uuid4().hex

    def new_job_id(self, created: datetime) -> str:
        """`<YYYY-MM-DD-HH-MM-SS>-<uuid>`: also the name of the job's folder."""
        return f"{created:%Y-%m-%d-%H-%M-%S}-{uuid.uuid4()}"

    def job(self, job_id: str) -> JobTree:
        """The tree of a job whose ID has been checked."""
        return JobTree(self.jobs / job_id)

    def job_ids(self) -> list[str]:
        """The names of the folders under `jobs/`, oldest first."""
        return sorted(
            entry.name for entry in os.scandir(self.jobs) if entry.is_dir(follow_symlinks=False)
        )

    def publish(self, prepared: JobTree, job_id: str) -> JobTree:
        """Move a complete tree from `uploads/` to its place, durably."""
        target = self.job(job_id)
        sync_tree(prepared.root)
        prepared.root.rename(target.root)
        sync_folder(self.jobs)
        return target

    def remove_job(self, job_id: str) -> None:
        """Remove a job's folder, which disappears from `jobs/` in one durable step.

        Only one call at a time for each job.

        Raises:
            OSError: Some files cannot be removed. They are in `uploads/`; the next call for this
                job, or the next start, tries again.
        """
        root = self.job(job_id).root
        aside = self.uploads / uuid.UUID(job_id[-_UUID_LENGTH:]).hex  # where the next call looks
        with suppress(FileNotFoundError):
            restore_access(root)
            root.rename(aside)
            sync_folder(self.jobs)
        discard(aside)

    def trouble(self) -> str | None:
        """Why the workspace can no longer be used, without naming its path; None if it can."""
        for folder in (self.uploads, self.models, self.jobs):
            if not folder.is_dir():
                return f"the folder {folder.name} of the workspace is not there"
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                return f"the folder {folder.name} of the workspace cannot be read and written"
        return None

    def free_bytes(self) -> int:
        """How many bytes are free on the workspace's disk."""
        return shutil.disk_usage(self.root).free

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A path under `uploads/`; whatever is there is removed afterwards."""
        path = self.new_upload()
        try:
            yield path
        finally:
            discard(path)

    def read_state(self) -> dict[str, Any]:
        """The state kept across restarts; empty if the file is missing or damaged."""
        try:
            state = json.loads((self.root / "state.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def write_state(self, state: dict[str, Any]) -> None:
        """Keep `state` across restarts."""
        folder = self.root.resolve()  # the workspace itself may be a link
        write_atomically(folder / "state.json", json.dumps(state, indent=2).encode())
