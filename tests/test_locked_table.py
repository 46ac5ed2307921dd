"""Another program locks the jobs table: whoever only looks is not kept waiting."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pfms.errors import NotReady
from pfms.jobs.journal import Journal
from pfms.jobs.rows import Rows
from pfms.jobs.table import Records
from pfms.storage.workspace import Workspace
from tests.conftest import StartServer, nifti_bytes

HOLD = """
import sqlite3, sys
table = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    table.execute(statement)
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(table: Path, *statements: str) -> Iterator[None]:
    """Lock the table from a process of its own."""
    line = [sys.executable, "-c", HOLD, str(table), *statements]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        yield
        other.stdin.close()


def test_reads_do_not_wait_for_a_write_that_waits_for_another_program(
    start_server: StartServer,
) -> None:
    server = start_server()
    job = server.submit()
    server.ended(job)
    with ThreadPoolExecutor() as threads:
        with locked(server.workspace / "pfms.db", "BEGIN EXCLUSIVE"):
            waits = threads.submit(
                httpx.post,
                f"{server.url}/api/v1/spleenseg/NIfTIinference",
                params={"modelID": "demo"},
                files={"file": nifti_bytes(seed=1)},
                headers={"Prefer": "respond-async"},
                timeout=100,
            )
            for _ in range(20):  # also once the write has come to the lock
                for path in ("/jobs", f"/jobs/{job}", f"/jobs/{job}/log"):
                    assert server.http.get(path, timeout=20).status_code == 200
                with server.http.stream("GET", f"/jobs/{job}/events", timeout=20) as events:
                    assert "succeeded" in "".join(events.iter_text())
            assert not waits.done()
        answer = waits.result()
    assert answer.status_code == 202, answer.text
    assert server.ended(answer.json()["id"])["state"] == "succeeded"


@pytest.mark.anyio
async def test_a_table_that_nobody_else_may_read_is_said(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    workspace.open()
    records = Records(workspace)
    records.open()
    records.close()
    journal = Journal(records)
    try:
        exclusive = "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"
        with locked(workspace.root / "pfms.db", *exclusive), pytest.raises(NotReady, match="lock"):
            await journal.read(Rows.page, limit=1)

        assert await journal.read(Rows.page, limit=1) == []
    finally:
        await journal.close()
        workspace.close()


@pytest.mark.anyio
async def test_what_a_reader_finds_damaged_the_writer_mends(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    workspace.open()
    journal = Journal(Records(workspace))
    await journal.call(journal.records.open)
    await journal.call(journal.records.close)
    table = workspace.root / "pfms.db"
    table.write_bytes(b"not a table".ljust(table.stat().st_size, b"!"))

    assert await journal.read(Rows.page, limit=1) == []

    assert len(list(workspace.root.glob("pfms.db.damaged-*"))) == 1
    with sqlite3.connect(table) as made_anew:
        assert made_anew.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    made_anew.close()
    assert await journal.read(Rows.get, "x") is None
    await journal.close()
    workspace.close()
