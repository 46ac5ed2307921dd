"""The tables of `pfms.db`, and the migration from older versions."""

import sqlite3

from pfms.storage.database import Damaged, transaction

# The version is SQLite's `user_version`; it is 0 in a new file, and in tables that Alembic made.

_OLD_COLUMNS = (
    "id, revision, state, model_id, created_at, ended_at, purged_at, idempotency_key, record"
)
_TABLES = (
    """CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        revision INTEGER NOT NULL,
        state TEXT NOT NULL,
        model_id TEXT NOT NULL,
        created_at TEXT NOT NULL,
        ended_at TEXT,
        purged_at TEXT,
        idempotency_key TEXT,
        record TEXT NOT NULL,
        stamp TEXT
    )""",
    """CREATE TABLE IF NOT EXISTS events (
        n INTEGER PRIMARY KEY, job_id TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL
    )""",
)
_FROM_BEFORE_VERSION_1 = (
    f"INSERT INTO jobs SELECT {_OLD_COLUMNS}, NULL FROM old_jobs",  # noqa: S608 (a constant)
    "DROP TABLE old_jobs",
    """DELETE FROM events WHERE kind = 'progress' AND n NOT IN (
        SELECT max(n) FROM events WHERE kind = 'progress'
        GROUP BY job_id, json_extract(data, '$.stage')
    )""",
)
_INDEXES = (
    "CREATE INDEX jobs_by_time ON jobs (created_at, id)",
    "CREATE INDEX jobs_by_state ON jobs (state, created_at, id)",
    "CREATE INDEX jobs_by_model ON jobs (model_id, created_at, id)",
    "CREATE INDEX jobs_by_both ON jobs (model_id, state, created_at, id)",
    "CREATE INDEX jobs_by_end ON jobs (ended_at)",
    "CREATE INDEX jobs_by_key ON jobs (idempotency_key) WHERE idempotency_key IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS events_of_job ON events (job_id, n)",
)
_OWNERS = (
    "ALTER TABLE jobs ADD COLUMN owner TEXT",
    # An older pfms, between two newer ones, kept the owners in the records alone.
    "UPDATE jobs SET owner = json_extract(record, '$.owner') WHERE json_valid(record)",
    "CREATE INDEX jobs_by_owner ON jobs (owner, created_at, id)",
    "DROP INDEX jobs_by_key",
    "CREATE INDEX jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL",
)
_BYTES = (
    "ALTER TABLE jobs ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0",
    """UPDATE jobs SET bytes = json_extract(record, '$.volume.size')
        + coalesce(json_extract(record, '$.segmentation.size'), 0)
        + (SELECT coalesce(sum(json_extract(value, '$.size')), 0)
            FROM json_each(record, '$.segmentation.files'))
        WHERE purged_at IS NULL AND json_valid(record)
            AND json_type(record, '$.volume.size') = 'integer'""",
    "CREATE INDEX jobs_by_bytes ON jobs (owner, bytes) WHERE bytes > 0",
)

_VOLUMES = (
    """CREATE INDEX IF NOT EXISTS jobs_by_volume
        ON jobs (json_extract(record, '$.volume.sha256'), created_at, id)
        WHERE json_valid(record)""",
)


def prepare_tables(connection: sqlite3.Connection) -> None:
    """Create the tables, or migrate old ones with all their rows.

    Raises:
        Damaged: They were made by a newer pfms.
    """
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if version > len(_STEPS):
        raise Damaged("a newer pfms wrote it")
    if version < len(_STEPS):
        with transaction(connection):
            for step in _STEPS[version:]:
                step(connection)
            connection.execute(f"PRAGMA user_version = {len(_STEPS)}")


def _to_version_1(connection: sqlite3.Connection) -> None:
    query = "SELECT count(*) FROM sqlite_schema WHERE name = 'jobs'"
    [old] = connection.execute(query).fetchone()
    if old:
        connection.execute("ALTER TABLE jobs RENAME TO old_jobs")
    for statement in (*_TABLES, *(_FROM_BEFORE_VERSION_1 if old else ()), *_INDEXES):
        connection.execute(statement)


def _to_version_2(connection: sqlite3.Connection) -> None:
    for statement in _OWNERS:
        connection.execute(statement)


def _to_version_3(connection: sqlite3.Connection) -> None:
    for statement in _BYTES:
        connection.execute(statement)


def _to_version_4(connection: sqlite3.Connection) -> None:
    for statement in _VOLUMES:
        connection.execute(statement)


# The n-th makes version n of the one before
_STEPS = (_to_version_1, _to_version_2, _to_version_3, _to_version_4)
