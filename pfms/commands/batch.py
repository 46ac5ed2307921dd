"""`pfms infer` with several volumes: some at a time, each once, with a table at the end."""

import csv
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pfms.client.client import Client
from pfms.client.problems import ClientError, Json, PfmsProblem, Unreachable, problem_of
from pfms.client.updates import OnUpdate, Update
from pfms.commands.dicom import Source
from pfms.commands.output import sentence
from pfms.commands.threads import in_threads
from pfms.commands.volumes import Task

RETRY_SECONDS = 300.0  # a restart may take a while, and nobody may be there to start this again
BUSY_SECONDS = 24 * 3600.0  # others' volumes may be before these

_LISTED = 1000  # failed jobs that are known not to be of this call
_LEAVE_SECONDS = 3.0
_INTERRUPTED = "interrupted"


@dataclass
class Row:
    """A line of the table; what is not known is empty.

    Attributes:
        file: The volume.
        ml: Of the spleen.
        seconds: That the run took.
        job: Its ID.
        warnings: Of the server.
        error: Why there is no result.
        output: The file of the result.
    """

    file: str
    ml: str = ""
    seconds: str = ""
    job: str = ""
    warnings: str = ""
    error: str = ""
    output: str = ""

    @property
    def skipped(self) -> bool:
        """Whether its result was there already."""
        return not self.job and not self.error


class Batch:
    """Several volumes for one model.

    Args:
        client: Of the server.
        model: ID of the model.
        resultant: `labels`, `onehot` or `logits`.
        again: Go on where an earlier call was ended: leave out volumes that have a result, and
            join the jobs of the others, if they have one.
        progress: Called with a volume and its progress, from several threads.
        dicom_seg: Write each result as DICOM SEG, too; all volumes are DICOM series.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        resultant: str,
        *,
        again: bool,
        progress: Callable[[str, Update], None],
        dicom_seg: bool = False,
    ) -> None:
        self._client = client
        self._model = model
        self._resultant = resultant
        self._again = again
        self._progress = progress
        self._dicom_seg = dicom_seg
        self._stopped = threading.Event()
        self._jobs: set[str] = set()  # that are not known to have ended
        self._active: set[Task] = set()
        self._converting = threading.Lock()  # a series takes up to a gigabyte meanwhile
        self._weights = self._model_sha256()
        failed = client.jobs(state="failed", model_id=model, limit=_LISTED) if again else []
        self._failed_before = {job["id"] for job in failed}

    def run(self, tasks: Iterable[Task], at_a_time: int) -> Iterator[Row]:
        """Segment all; a row as soon as each has ended."""
        return in_threads(self._row, tasks, at_a_time)

    def cancel(self) -> int:
        """Cancel every job that this call waits for, and begin nothing more; how many there were.

        What is being written then is finished or removed, if that does not take long.
        """
        self._stopped.set()
        cancelled = 0
        for job_id in list(self._jobs):
            with suppress(ClientError):
                self._client.cancel(job_id)
                cancelled += 1
        until = time.monotonic() + _LEAVE_SECONDS
        while self._active and time.monotonic() < until:
            time.sleep(0.05)
        return cancelled

    def _model_sha256(self) -> str:
        """The checksum of the weights; the first call, so that a wrong address is noticed here."""
        try:
            return str(self._client.model(self._model)["sha256"])
        except PfmsProblem as problem:
            if problem.code.startswith("http-"):
                return ""  # a server that keeps no jobs
            raise

    def _row(self, task: Task) -> Row:
        row = Row(task.name, output=str(task.target))
        if self._again and all(path.exists() for path in task.outputs(self._dicom_seg)):
            return row
        try:
            job, warnings = self._segment(task)
        except ClientError as error:
            if isinstance(error, Unreachable):
                self._stopped.set()  # each of the others would wait as long
            row.job = error.job or ""
            words = f"{getattr(error, 'code', '')}: {sentence(error.detail)} {error.remedy}"
            row.error = words.rstrip()
        except OSError as error:
            row.error = f"{error.strerror or error}"
        else:
            row.warnings = "; ".join([*(job["warnings"] if job else ()), *warnings])
            if job is not None:
                row.job, found = job["id"], job["segmentation"]
                row.ml, row.seconds = f"{found['spleen_ml']:.1f}", f"{job['seconds']:.1f}"
        return row

    def _segment(self, task: Task) -> tuple[Json | None, list[str]]:
        """The job as it ended, its result saved, and what is to be said about that."""
        seen = ""

        def on_update(update: Update) -> None:
            nonlocal seen
            if update.job and not seen:
                seen = update.job
                self._jobs.add(seen)
            if self._stopped.is_set():
                raise PfmsProblem(_INTERRUPTED, "not segmented, because this call was ended")
            self._progress(task.name, update)

        on_update(Update("waiting"))
        task.target.parent.mkdir(parents=True, exist_ok=True)
        self._active.add(task)
        try:
            with self._converting:
                source = Source(task, on_update)
            job = self._once(task, source, on_update)
            return job, source.save_seg(self._model, job) if self._dicom_seg else []
        finally:
            self._active.discard(task)
            self._jobs.discard(seen)

    def _once(self, task: Task, source: Source, on_update: OnUpdate) -> Json | None:
        """The job as it ended, its result saved; an earlier call's job if there is one."""
        client, volume, resultant = self._client, source.volume, self._resultant
        if not self._again or not self._weights:
            return client.infer(
                volume, self._model, task.target, resultant=resultant, on_update=on_update
            )
        asked = "\n".join((source.sha256(), self._model, self._weights, resultant))
        key = hashlib.sha256(asked.encode()).hexdigest()
        for n in itertools.count():
            job = client.submit(
                volume, self._model, resultant=resultant, key=f"{key}-{n}", on_update=on_update
            )
            if job["id"] not in self._failed_before and not job["purged_at"]:
                break  # or else it is tried again, once for each call
        on_update(Update("waiting", job=job["id"]))
        job = client.wait(job["id"], on_update)
        if job["error"] is not None:
            raise problem_of(job)
        client.save_result(job["id"], task.target, resultant, on_update)
        return job


COLUMNS = tuple(field.name for field in fields(Row))


def read_csv(path: Path) -> dict[str, Row]:
    """The rows of an earlier call, by file; none if it is not such a table."""
    with suppress(OSError, UnicodeDecodeError), path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) == COLUMNS:
            return {line["file"]: Row(**line) for line in reader}
    return {}


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write the table; it appears once complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    part.replace(path)
