"""The jobs table: a quick index of every job's `job.json`, from which it can be rebuilt.

`job.json` is renamed into place first, then the row is written, so that a folder is never behind
its row; at a start the higher `revision` wins. Each row keeps a stamp of the `job.json` that it
reflects, so that a start checks every file's time and size, but reads only those that changed.
"""

import json
import logging
import os
import sqlite3
import time
from typing import Any

from pfms.errors import JobNotFound, StartError
from pfms.jobs.events import Event
from pfms.jobs.folders import catch_up, stamp_of
from pfms.jobs.job import ENDED, Cause, Job
from pfms.jobs.rows import Rows
from pfms.jobs.schema import prepare_tables
from pfms.storage.database import Damaged, Database, Reader, transaction
from pfms.storage.workspace import JobTree, Workspace

log = logging.getLogger(__name__)


class Records(Rows):
    """The table, to read and to write. Its calls block; one thread makes them all, in order.

    Whichever call finds the table damaged, the file is set aside and rebuilt from the folders.

    Attributes:
        left_out: The names under `jobs/` that are not jobs, or whose `job.json` cannot be read.
            Their folders and rows are left unchanged.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._file = workspace.root / "pfms.db"
        self._writer = Database(self._file, self._prepare)
        super().__init__(self._writer)
        self._last_n = 0
        self.left_out: set[str] = set()

    # --- opening ---------------------------------------------------------------------------

    def open(self) -> None:
        """Migrate the table if it is old, and bring it up to date with the folders.

        Raises:
            StartError: It is not writable, there is no room for it, or it is in use.
        """
        try:
            self._database.run(lambda _: None)
        except PermissionError:
            raise StartError(
                f"The jobs table {self._file} belongs to another user.",
                f"Let the group write it: chmod g+w {self._file}*",
            ) from None
        except sqlite3.Error as error:
            raise StartError(
                f"The jobs table {self._file} cannot be opened ({error}, "
                f"{self._workspace.free_bytes()} bytes are free).",
                _remedy(error),
            ) from None

    def reader(self) -> Reader:
        """A second way to read the table, for a thread of its own."""
        return Reader(self._file)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _prepare(self, table: sqlite3.Connection) -> None:
        try:
            prepare_tables(table)
            self._last_n = max(self._last_n, _scalar(table, "SELECT max(n) FROM events") or 0)
            self._catch_up(table)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # no such table, no such column
                raise Damaged(f"its tables are not those of pfms: {error}") from None
            raise

    def _catch_up(self, table: sqlite3.Connection) -> None:
        def put(job: Job, stamp: str) -> None:
            self._put(table, job, has_folder=True, stamp=stamp)

        self.left_out = catch_up(table, self._workspace, put, lambda each: _forget(table, each))

    def reindex(self) -> int:
        """Rebuild the table from the folders; returns how many jobs it has then."""

        def rebuild(table: sqlite3.Connection) -> int:
            with transaction(table):  # makes every folder newer than its row
                table.execute("UPDATE jobs SET revision = 0, stamp = NULL")
            self._catch_up(table)
            return int(_scalar(table, "SELECT count(*) FROM jobs"))

        return self._database.run(rebuild)

    # --- writing ---------------------------------------------------------------------------

    def write(self, job: Job) -> Event:
        """Make a change durable: the folder's record, then the row, with its event.

        If someone removed the folder of a job that has not ended, the change is still recorded, in
        the row alone.

        Raises:
            JobNotFound: The job no longer has a folder, and has ended or has no row.
        """
        tree = self._workspace.job(job.id)
        try:
            self.write_file(tree, job)
            stamp = stamp_of(tree.record)
        except (FileNotFoundError, NotADirectoryError):
            log.warning("job %s: its folder is gone", job.id, extra={"job": job.id})
            stamp = None
        return self._write_row(job, has_folder=stamp is not None, stamp=stamp)

    def write_file(self, tree: JobTree, job: Job, *, durable: bool = True) -> None:
        """Write `job.json`, as `inside.writing`."""
        content = job.model_dump_json(indent=2) + "\n"
        tree.write(tree.record, content.encode(), durable=durable)

    def write_row(self, job: Job) -> Event:
        """Write the row of a record that is already in its folder, with an event.

        A row with a later revision is left unchanged, and its last event is returned.

        Raises:
            JobNotFound: The job no longer has a folder, and has ended or has no row.
        """
        return self._write_row(job, has_folder=self._workspace.job(job.id).root.is_dir())

    def _write_row(self, job: Job, *, has_folder: bool, stamp: str | None = None) -> Event:
        def put(table: sqlite3.Connection) -> Event:
            with transaction(table):
                return self._put(table, job, has_folder=has_folder, stamp=stamp)

        return self._database.run(put)

    def _put(
        self, table: sqlite3.Connection, job: Job, *, has_folder: bool, stamp: str | None
    ) -> Event:
        query = "SELECT revision, state FROM jobs WHERE id = ?"
        revision, state = table.execute(query, (job.id,)).fetchone() or (0, None)
        if not has_folder and (state is None or state in ENDED):
            raise JobNotFound("The job was removed.", job=job.id)
        newer = job.revision > revision
        if newer:
            row = (
                job.id,
                job.revision,
                job.state,
                job.model.modelID,
                job.created_at,
                job.ended_at,
                job.purged_at,
                job.idempotency_key,
                job.model_dump_json(),
                stamp,
                job.owner,
                job.bytes_kept,
            )
            query = "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            table.execute(query, row)
        elif stamp is not None:
            table.execute("UPDATE jobs SET stamp = ? WHERE id = ?", (stamp, job.id))
        return self._state_event(table, job, newer)

    def _state_event(self, table: sqlite3.Connection, job: Job, newer: bool) -> Event:
        """A new event, or the last one if clients would see no difference."""
        data = _event_data(job)
        query = (
            "SELECT n, data FROM events WHERE job_id = ? AND kind = 'state' ORDER BY n DESC LIMIT 1"
        )
        for n, text in table.execute(query, (job.id,)):
            last = Event(n, "state", json.loads(text))
            if last.data == data or not newer:
                return last
        return self._add_event(table, job.id, "state", data)

    def progress(self, job_id: str, data: dict[str, Any]) -> Event | None:
        """Write an event of progress; it replaces the last one of the same `stage`.

        If the job is not running, nothing is written, and None is returned.
        """

        def put(table: sqlite3.Connection) -> Event | None:
            with transaction(table):
                query = "SELECT 1 FROM jobs WHERE id = ? AND state = 'running'"
                if table.execute(query, (job_id,)).fetchone() is None:
                    return None
                table.execute(
                    "DELETE FROM events WHERE job_id = ? AND kind = 'progress' "
                    "AND json_extract(data, '$.stage') IS ?",
                    (job_id, data.get("stage")),
                )
                return self._add_event(table, job_id, "progress", data)

        return self._database.run(put)

    def _add_event(
        self, table: sqlite3.Connection, job_id: str, kind: str, data: dict[str, Any]
    ) -> Event:
        # From the clock, so that numbers grow even if the table is lost and rebuilt.
        self._last_n = max(self._last_n + 1, time.time_ns() // 1000)
        row = (self._last_n, job_id, kind, json.dumps(data))
        table.execute("INSERT INTO events (n, job_id, kind, data) VALUES (?, ?, ?, ?)", row)
        return Event(self._last_n, kind, data)

    def forget(self, job_id: str) -> None:
        """Remove a job's row and events."""

        def remove(table: sqlite3.Connection) -> None:
            with transaction(table):
                _forget(table, job_id)

        self._database.run(remove)

    def active(self) -> list[Job]:
        """The jobs that have not ended, oldest first, without those that are left alone."""
        jobs = self._jobs("state IN ('queued', 'running')")
        return [job for job in jobs if not (job.id in self.left_out and self._has_record(job.id))]

    def _has_record(self, job_id: str) -> bool:
        return os.path.lexists(self._workspace.job(job_id).record)


def _forget(table: sqlite3.Connection, job_id: str) -> None:
    table.execute("DELETE FROM events WHERE job_id = ?", (job_id,))
    table.execute("DELETE FROM jobs WHERE id = ?", (job_id,))


def _scalar(table: sqlite3.Connection, query: str) -> Any:
    return table.execute(query).fetchone()[0]


def _remedy(error: sqlite3.Error) -> str:
    kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return "Make room there, then start again."
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "End the other program that uses it, then start again."
    return "Let this user read and write it, then start again."


def _event_data(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "cancel_requested": job.cancel_requested,
        "device": job.device,
        "error": job.error.model_dump(include=set(Cause.model_fields)) if job.error else None,
    }
