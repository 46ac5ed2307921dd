"""The jobs table: what is known of every job, quick to ask. The folders' `job.json` say the same.

`job.json` is renamed into place first, then the row is written, so that a folder is never behind
its row; at a start the higher `revision` wins.
"""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError, OperationalError

from pfms.errors import StartError
from pfms.jobs.events import Event
from pfms.jobs.job import ENDED, Job, State
from pfms.storage.disk import network_storage
from pfms.storage.files import write_atomically
from pfms.storage.workspace import JobTree, Workspace

log = logging.getLogger(__name__)

_HEAD = "0001"  # the newest step in migrations/versions; a test holds it to that

# What SQLite answers when the disk is full (IOERR too) or held by others: nothing to rebuild.
_NOT_DAMAGED = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN")

_tables = sa.MetaData()
_jobs = sa.Table(
    "jobs",
    _tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("revision", sa.Integer),
    sa.Column("state", sa.String),
    sa.Column("model_id", sa.String),
    sa.Column("created_at", sa.String),
    sa.Column("ended_at", sa.String),
    sa.Column("purged_at", sa.String),
    sa.Column("idempotency_key", sa.String),
    sa.Column("record", sa.Text),
)
_events = sa.Table(
    "events",
    _tables,
    sa.Column("n", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.String),
    sa.Column("kind", sa.String),
    sa.Column("data", sa.Text),
)


class Records:
    """The table. Its calls block: one thread of the service makes them all, in order."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._file = workspace.root / "pfms.db"
        self._engine = _engine(self._file)
        self._last_n = 0

    def open(self) -> None:
        """Bring the table to its newest form; rebuild it where it is damaged or missing.

        Raises:
            StartError: It may not be written, or there is no room for it.
        """
        try:
            self._prepare()
            self._catch_up()
        except DatabaseError as error:
            if getattr(error.orig, "sqlite_errorname", "").startswith(_NOT_DAMAGED):
                free = self._workspace.free_bytes()
                raise StartError(
                    f"The jobs table cannot be opened ({error.orig}, {free} bytes are free).",
                    "Make room there, then start again.",
                ) from None
            self._rebuild(error)

    def _rebuild(self, damage: DatabaseError) -> None:
        log.warning("the jobs table is damaged and is rebuilt from the folders: %s", damage.orig)
        self.close()
        for damaged in self._file.parent.glob(f"{self._file.name}*"):
            damaged.unlink()
        self._engine = _engine(self._file)
        self._prepare()
        self._catch_up()

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def _prepare(self) -> None:
        try:
            # SQLite's own way, 0644, would shut out the next of a container's random user IDs.
            self._file.touch(0o660)
        except PermissionError:
            raise StartError(
                f"The jobs table {self._file} belongs to another user.",
                f"Let the group write it: chmod g+w {self._file}*",
            ) from None
        with self._engine.connect() as connection:
            if connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() != "ok":
                raise DatabaseError("quick_check", None, Exception("its pages do not fit"))
            known = sa.inspect(connection).has_table("alembic_version")
            query = "SELECT version_num FROM alembic_version"
            if not known or connection.exec_driver_sql(query).scalar() != _HEAD:
                self._migrate(connection)
            self._last_n = connection.scalar(sa.select(sa.func.max(_events.c.n))) or 0

    def _migrate(self, connection: sa.Connection) -> None:
        # Imported here: a start that has nothing to migrate does without it.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()

    def _catch_up(self) -> None:
        """Where a folder knows more than the table, believe the folder."""
        with self._engine.connect() as connection:
            query = sa.select(_jobs.c.id, _jobs.c.state)
            rows: dict[str, str] = dict(connection.execute(query).all())
        folders = set(self._workspace.job_ids())
        for job_id in folders:
            if rows.get(job_id) not in ENDED:
                job = self._read_folder(job_id)
                if job is not None:
                    self.write_row(job)
        for job_id in rows.keys() - folders:
            self.forget(job_id)

    def reindex(self) -> int:
        """Build the table anew from the folders; how many jobs it has then."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_jobs))
        self._catch_up()
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(_jobs)) or 0

    def _read_folder(self, job_id: str) -> Job | None:
        path = self._workspace.job(job_id).record
        try:
            return Job.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            log.warning("job %s: its job.json is not readable: %s", job_id, error)
            return None

    def write(self, job: Job) -> Event:
        """Make a change durable: the folder's record, then the row, with its event."""
        tree = self._workspace.job(job.id)
        tree.root.mkdir(exist_ok=True)  # someone may have removed it under a run
        self.write_file(tree, job)
        return self.write_row(job)

    def write_file(self, tree: JobTree, job: Job) -> None:
        """Write `job.json`."""
        write_atomically(tree.record, (job.model_dump_json(indent=2) + "\n").encode())

    def write_row(self, job: Job) -> Event:
        """Write the row, unless it is of a later revision already, and an event that says so."""
        try:
            return self._write_row(job)
        except OperationalError:  # locked, or the disk is full: not damaged
            raise
        except DatabaseError as error:
            self._rebuild(error)
            return self._write_row(job)

    def _write_row(self, job: Job) -> Event:
        row = {
            "id": job.id,
            "revision": job.revision,
            "state": job.state,
            "model_id": job.model.modelID,
            "created_at": job.created_at,
            "ended_at": job.ended_at,
            "purged_at": job.purged_at,
            "idempotency_key": job.idempotency_key,
            "record": job.model_dump_json(),
        }
        newer = insert(_jobs).values(row)
        newer = newer.on_conflict_do_update(
            index_elements=["id"], set_=row, where=newer.excluded.revision > _jobs.c.revision
        )
        with self._engine.begin() as connection:
            connection.execute(newer)
            return self._add_event(connection, job.id, "state", _event_data(job))

    def progress(self, job_id: str, data: dict[str, Any]) -> Event:
        """Write an event that changes no record."""
        with self._engine.begin() as connection:
            return self._add_event(connection, job_id, "progress", data)

    def _add_event(
        self, connection: sa.Connection, job_id: str, kind: str, data: dict[str, Any]
    ) -> Event:
        # The clock, so that numbers grow even when the table was lost and built anew.
        self._last_n = max(self._last_n + 1, time.time_ns() // 1000)
        event = Event(self._last_n, kind, data)
        connection.execute(
            sa.insert(_events).values(n=event.n, job_id=job_id, kind=kind, data=json.dumps(data))
        )
        return event

    def events(self, job_id: str, after: int = 0) -> list[Event]:
        """A job's events after number `after`, the oldest first."""
        query = sa.select(_events.c.n, _events.c.kind, _events.c.data)
        query = query.where(_events.c.job_id == job_id, _events.c.n > after).order_by(_events.c.n)
        with self._engine.connect() as connection:
            return [Event(n, kind, json.loads(data)) for n, kind, data in connection.execute(query)]

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        return next(self._jobs(_jobs.c.id == job_id), None)

    def by_key(self, key: str) -> Job | None:
        """The job that an Idempotency-Key stands for, or None."""
        return next(self._jobs(_jobs.c.idempotency_key == key), None)

    def active(self) -> list[Job]:
        """The jobs that have not ended, the oldest first."""
        return list(self._jobs(_jobs.c.state.not_in(ENDED)))

    def ended_before(self, moment: str, *, purged: bool) -> list[Job]:
        """The jobs that ended before `moment`; with `purged`, those too whose voxels are gone."""
        condition = _jobs.c.ended_at < moment
        if not purged:
            condition &= _jobs.c.purged_at.is_(None)
        return list(self._jobs(condition))

    def last_seconds(self, count: int) -> list[tuple[str, float]]:
        """Model ID and seconds of the last `count` successful runs, the oldest first."""
        query = sa.select(_jobs.c.record).where(_jobs.c.state == "succeeded")
        query = query.order_by(_jobs.c.created_at.desc()).limit(count)
        with self._engine.connect() as connection:
            jobs = [Job.model_validate_json(text) for text in connection.scalars(query)]
        return [(job.model.modelID, job.seconds or 0.0) for job in reversed(jobs)]

    def page(
        self,
        *,
        limit: int,
        before: tuple[str, str] | None = None,
        state: State | None = None,
        model_id: str | None = None,
    ) -> list[Job]:
        """Jobs, the newest first; `before` is the (created_at, id) of the last one seen."""
        conditions: list[sa.ColumnElement[bool]] = [sa.true()]
        if state is not None:
            conditions.append(_jobs.c.state == state)
        if model_id is not None:
            conditions.append(_jobs.c.model_id == model_id)
        if before is not None:
            conditions.append(sa.tuple_(_jobs.c.created_at, _jobs.c.id) < before)
        return list(self._jobs(sa.and_(*conditions), newest_first=True, limit=limit))

    def _jobs(
        self, condition: sa.ColumnElement[bool], *, newest_first: bool = False, limit: int = -1
    ) -> Iterator[Job]:
        order = [_jobs.c.created_at, _jobs.c.id]
        query = sa.select(_jobs.c.record).where(condition).limit(limit)
        query = query.order_by(*(column.desc() if newest_first else column for column in order))
        with self._engine.connect() as connection:
            for text in connection.scalars(query):
                yield Job.model_validate_json(text)

    def forget(self, job_id: str) -> None:
        """Remove a job's row and events."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_events).where(_events.c.job_id == job_id))
            connection.execute(sa.delete(_jobs).where(_jobs.c.id == job_id))


def _event_data(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "cancel_requested": job.cancel_requested,
        "device": job.device,
        "error": job.error.model_dump() if job.error else None,
    }


def _engine(file: Path) -> sa.Engine:
    # So long may another program, a person's sqlite3, say, hold the table.
    arguments = {"check_same_thread": False, "timeout": 60}
    engine = sa.create_engine(f"sqlite:///{file}", connect_args=arguments)
    # SQLite's write-ahead log needs shared memory between processes: a local disk.
    journal = "WAL"
    if storage := network_storage(file):
        log.warning("the jobs table works slower on network storage (%s)", storage)
        journal = "TRUNCATE"

    @sa.event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        connection.execute(f"PRAGMA journal_mode={journal}")
        # job.json is made durable first, and the higher revision wins: the row may lag a crash.
        connection.execute("PRAGMA synchronous=NORMAL")

    return engine
