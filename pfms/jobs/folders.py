"""Reads the folders under `jobs/`, whatever is there, and brings the table into line with them."""

import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from pydantic import ValidationError

from pfms.jobs.job import JOB_ID, Job
from pfms.storage.database import transaction
from pfms.storage.inside import open_file
from pfms.storage.workspace import Workspace

log = logging.getLogger(__name__)

_BATCH = 1000  # rows per transaction, when many are written
_MAX_BYTES = 1 << 20  # an ordinary record has a few thousand


class Unreadable(Exception):
    """A record that this pfms cannot read; the message says why, in one line."""


def parse_record(job_id: str, content: str | bytes) -> Job:
    """Parse the record of a job, as JSON.

    Raises:
        Unreadable: It is damaged, belongs to another job, or is from an incompatible pfms.
    """
    try:
        job = Job.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise Unreadable(": ".join([*map(str, first["loc"]), first["msg"]])) from None
    except ValueError as error:  # not UTF-8
        raise Unreadable(str(error)) from None
    if job.id != job_id:
        raise Unreadable("it belongs to another job")
    return job


def stamp_of(record: str | Path) -> str | None:
    """A stamp that changes when `job.json` is rewritten; None if there is no such file."""
    try:
        status = os.stat(record, follow_symlinks=False)  # noqa: PTH116 (making 100,000 Paths is slow)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return f"{status.st_mtime_ns}-{status.st_size}"


def read_record(job_id: str, record: Path) -> tuple[Job, str]:
    """Read a `job.json`: the job, and the stamp of what was read.

    Raises:
        Unreadable: There is no such file, or it cannot be read.
    """
    stamp = stamp_of(record)  # before the file is read: a change in between is seen next time
    if stamp is None:
        raise Unreadable("there is no such file")
    try:
        with open_file(record.parent, record.name) as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(str(error.strerror)) from None
    if len(content) > _MAX_BYTES:
        raise Unreadable(f"it has more than {_MAX_BYTES} bytes")
    return parse_record(job_id, content), stamp


def catch_up(
    table: sqlite3.Connection,
    workspace: Workspace,
    put: Callable[[Job, str], object],
    forget: Callable[[str], object],
) -> set[str]:
    """Look at every folder, read the records that differ from their rows, and update those rows.

    Args:
        table: The jobs table.
        workspace: Where the folders are.
        put: Writes the row of a job, with its stamp, unless the row has a later revision.
        forget: Removes the row of a job that has no folder.

    Returns:
        The names under `jobs/` that are not jobs, or whose records cannot be read. They and their
        rows are left unchanged.
    """
    rows: dict[str, str | None] = dict(table.execute("SELECT id, stamp FROM jobs"))
    left_out: set[str] = set()
    changed = []
    for name, is_link in _names(workspace.jobs):
        if is_link:
            log.warning("jobs/%s is a link and is left alone", name)
            rows.pop(name, None)
            left_out.add(name)
        elif JOB_ID.fullmatch(name):
            stamp = stamp_of(f"{workspace.jobs}/{name}/job.json")
            if rows.pop(name, None) != stamp or stamp is None:
                changed.append(name)
        else:
            log.warning("jobs/%s is not a job's folder and is left alone", name)
            left_out.add(name)
    changed.sort()  # in the disk's order, 100,000 rows would rewrite the index many times
    for start in range(0, len(changed), _BATCH):
        with transaction(table):
            for job_id in changed[start : start + _BATCH]:
                try:
                    put(*read_record(job_id, workspace.job(job_id).record))
                except Unreadable as why:
                    log.warning(
                        "job %s is left alone: its job.json cannot be read: %s",
                        job_id,
                        why,
                        extra={"job": job_id},
                    )
                    left_out.add(job_id)
    if rows:
        with transaction(table):
            for job_id in rows:
                forget(job_id)
    _warn_of_shared_keys(table)
    return left_out


def _names(folder: Path) -> Iterator[tuple[str, bool]]:
    """The names of everything in a folder except regular files, and whether each is a link."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                yield entry.name, entry.is_symlink()


def _warn_of_shared_keys(table: sqlite3.Connection) -> None:
    # A folder was moved away, its key was used again, and then the folder came back.
    shared = table.execute(
        "SELECT owner, idempotency_key, id FROM jobs JOIN ("
        "SELECT owner AS one, idempotency_key AS key FROM jobs WHERE idempotency_key IS NOT NULL "
        "GROUP BY one, key HAVING count(*) > 1"
        ") ON owner IS one AND idempotency_key = key "
        "ORDER BY owner, key, created_at DESC, id DESC"
    )
    for _, rows in groupby(shared, key=lambda row: row[:2]):
        newest, *others = (row[2] for row in rows)
        log.warning(
            "jobs %s share one Idempotency-Key: it refers to the newest, %s",
            ", ".join([newest, *others]),
            newest,
        )
