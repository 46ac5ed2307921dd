"""A table that is damaged, from another pfms, locked or not a table, whichever call finds out."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from pfms.errors import StartError
from pfms.jobs.job import State
from pfms.jobs.table import Records
from pfms.storage import database
from pfms.storage.database import Damaged, Database
from pfms.storage.workspace import Workspace
from tests.conftest import StartServer
from tests.test_job import ID, job
from tests.test_records import ids, opened, with_folder, workspace  # noqa: F401 (a fixture)

PAGE = 4096


def table_of(place: Workspace) -> Path:
    return place.root / "pfms.db"


def kept_by(place: Workspace) -> list[Path]:
    return list(place.root.glob("pfms.db.damaged-*"))


def damage_pages(file: Path) -> None:
    """Damage all pages but the first, in place, so that everyone who has the file open sees it."""
    size = file.stat().st_size
    with file.open("r+b") as pages:
        pages.seek(PAGE)
        pages.write(b"\xff" * (size - PAGE))


def fill(place: Workspace, state: State = "running") -> None:
    """Write 200 jobs: more than SQLite keeps in memory."""
    for job_id in ids(200):
        one = job(id=job_id, warnings=["x" * 20_000]).moved(state)
        place.job(job_id).lay_out()
        place.job(job_id).record.write_text(one.model_dump_json())
    opened(place).close()


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut", "page"])
def test_a_lost_or_damaged_table_is_rebuilt_and_nothing_else_is_touched(
    workspace: Workspace,  # noqa: F811
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = opened(workspace)
    for job_id in ids(40):
        with_folder(workspace, records, job(id=job_id))
    records.close()
    file = table_of(workspace)
    theirs = [file.with_name(f"pfms.db{end}") for end in (".bak", "-copy", "2", ".damaged-mine")]
    for copy in theirs:
        copy.write_bytes(file.read_bytes())
    match damage:
        case "missing":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "garbage":
            file.write_bytes(b"this is no database" * 1000)
        case "cut":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        case "page":
            damage_pages(file)
    evidence = file.read_bytes() if file.exists() else b""
    records = opened(workspace)
    assert sorted(one.id for one in records.page(limit=99)) == ids(40)
    assert records.reindex() == 40
    records.close()
    assert all(copy.exists() for copy in theirs)
    if damage in ("missing", "empty"):
        assert kept_by(workspace) == [theirs[-1]]
    else:
        [kept] = set(kept_by(workspace)) - {theirs[-1]}
        assert kept.read_bytes() == evidence
        assert kept.name in caplog.text


CALLS: dict[str, Callable[[Records], object]] = {
    "get": lambda records: records.get(ids(100)[-1]),
    "page": lambda records: records.page(limit=1000),
    "events": lambda records: records.events(ids(100)[-1]),
    "active": lambda records: records.active(),
    "ended_before": lambda records: records.ended_before("9999", purged=True) == [],
    "write": lambda records: records.write(
        job(id=ids(100)[-1]).moved("running").moved("succeeded")
    ),
    "progress": lambda records: records.progress(ids(100)[-1], {"stage": "saving"}),
    "reindex": lambda records: records.reindex(),
}


@pytest.mark.parametrize("call", CALLS)
def test_any_call_that_finds_the_damage_is_answered_from_the_rebuilt_table(
    workspace: Workspace,  # noqa: F811
    call: str,
) -> None:
    fill(workspace)
    records = opened(workspace)
    damage_pages(table_of(workspace))
    assert CALLS[call](records)
    assert len(records.page(limit=1000)) == 200
    assert len(kept_by(workspace)) == 1
    records.close()


def test_damage_that_comes_back_at_once_is_an_error_and_not_a_loop(tmp_path: Path) -> None:
    def never_good(_: sqlite3.Connection) -> None:
        raise Damaged("it is bad again")

    one = Database(tmp_path / "pfms.db", never_good)
    with pytest.raises(Damaged):
        one.run(lambda _: None)
    assert len(list(tmp_path.glob("pfms.db.damaged-*"))) == 1


@pytest.mark.parametrize(
    "statements",
    [
        "PRAGMA user_version = 99; CREATE TABLE jobs (id TEXT)",
        "PRAGMA user_version = 1",
        "CREATE TABLE jobs (name TEXT, salary INTEGER)",
    ],
    ids=["newer", "empty", "another program's"],
)
def test_a_table_of_unknown_origin_is_kept_and_a_new_one_made(
    workspace: Workspace,  # noqa: F811
    statements: str,
) -> None:
    records = opened(workspace)
    with_folder(workspace, records, job())
    records.close()
    table_of(workspace).unlink()
    other = sqlite3.connect(table_of(workspace))
    other.executescript(statements)
    other.close()
    records = opened(workspace)
    assert records.get(ID) is not None
    assert len(kept_by(workspace)) == 1
    records.close()


def test_a_table_that_another_program_locks_stops_the_start_and_is_left_unchanged(
    workspace: Workspace,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = opened(workspace)
    with_folder(workspace, records, job())
    records.close()
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.05)
    other = sqlite3.connect(table_of(workspace), isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StartError, match="locked") as stopped:
        opened(workspace)
    assert "other program" in stopped.value.line
    other.close()
    assert kept_by(workspace) == []
    records = opened(workspace)
    assert records.get(ID) is not None
    records.close()


def test_a_folder_in_the_place_of_the_table_stops_the_start(
    workspace: Workspace,  # noqa: F811
) -> None:
    table_of(workspace).mkdir()
    with pytest.raises(StartError, match="cannot be opened"):
        opened(workspace)
    assert table_of(workspace).is_dir()


def test_a_running_server_survives_damage_to_its_table(
    start_server: StartServer, tmp_path: Path
) -> None:
    place = Workspace(tmp_path / "workspace")
    place.open()
    fill(place, "failed")
    place.close()
    server = start_server()
    damage_pages(table_of(place))
    answer = server.http.get("/jobs", params={"limit": 1000})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["jobs"]) == 200
    assert server.ended(server.submit())["state"] == "succeeded"
    assert server.http.get(f"/jobs/{ids(200)[7]}/events").status_code == 200
    assert len(kept_by(place)) == 1
    assert "and rebuilt" in server.log.read_text()
