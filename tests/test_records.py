import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

import pfms
from pfms.jobs import table as records_module
from pfms.jobs.job import Job
from pfms.jobs.table import Records
from pfms.storage.workspace import Workspace
from tests.test_job import ID, job


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    place = Workspace(tmp_path / "workspace")
    place.open()
    yield place
    place.close()


def opened(workspace: Workspace) -> Records:
    records = Records(workspace)
    records.open()
    return records


def with_folder(workspace: Workspace, records: Records, one: Job) -> Job:
    workspace.job(one.id).lay_out()
    records.write(one)
    return one


def ids(count: int) -> list[str]:
    return [f"{ID[:-3]}{n:03x}" for n in range(count)]


def test_the_head_that_records_expects_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option(
        "script_location", str(Path(pfms.__file__).parent / "jobs" / "migrations")
    )
    assert ScriptDirectory.from_config(config).get_current_head() == records_module._HEAD


def test_a_record_comes_back_as_it_was_written(workspace: Workspace) -> None:
    records = opened(workspace)
    one = with_folder(workspace, records, job(warnings=["ä"], rerun_of=ID))
    assert records.get(ID) == one
    assert Job.model_validate_json(workspace.job(ID).record.read_bytes()) == one
    records.close()


def test_pages_go_from_new_to_old_without_gap_or_repetition(workspace: Workspace) -> None:
    records = opened(workspace)
    for n, job_id in enumerate(ids(7)):
        # two share a moment: the ID decides
        moment = f"2026-11-23T15:00:0{n // 2}.000000Z"
        with_folder(workspace, records, job(id=job_id, created_at=moment))
    seen: list[str] = []
    before = None
    while page := records.page(limit=2, before=before):
        seen += [one.id for one in page]
        before = (page[-1].created_at, page[-1].id)
    assert seen == ids(7)[::-1]
    records.close()


def test_filters_hold_together(workspace: Workspace) -> None:
    records = opened(workspace)
    first, second, third = ids(3)
    with_folder(workspace, records, job(id=first))
    with_folder(workspace, records, job(id=second).moved("running"))
    other = job().model.model_copy(update={"modelID": "other"})
    with_folder(workspace, records, job(id=third, model=other))
    found = records.page(limit=9, state="queued", model_id="demo")
    assert [one.id for one in found] == [first]
    assert {one.id for one in records.active()} == {first, second, third}
    records.close()


def test_an_older_revision_never_replaces_a_newer_one(workspace: Workspace) -> None:
    records = opened(workspace)
    old = with_folder(workspace, records, job())
    new = old.moved("running")
    records.write(new)
    records.write_row(old)
    assert records.get(ID) == new
    records.close()


def test_a_folder_that_is_ahead_of_its_row_wins_at_the_start(workspace: Workspace) -> None:
    records = opened(workspace)
    one = with_folder(workspace, records, job())
    ahead = one.moved("running").moved("succeeded")
    records.write_file(workspace.job(ID), ahead)  # and the crash came before the row
    records.close()
    records = opened(workspace)
    assert records.get(ID) == ahead
    records.close()


def test_a_row_without_a_folder_is_forgotten_at_the_start(workspace: Workspace) -> None:
    records = opened(workspace)
    with_folder(workspace, records, job())
    workspace.remove_job(ID)
    records.close()
    records = opened(workspace)
    assert records.get(ID) is None
    assert records.events(ID) == []
    records.close()


@pytest.mark.parametrize("damage", ["missing", "garbage", "cut", "page"])
def test_a_lost_or_damaged_table_is_rebuilt_from_the_folders(
    workspace: Workspace, damage: str
) -> None:
    records = opened(workspace)
    written = [with_folder(workspace, records, job(id=job_id)) for job_id in ids(40)]
    records.close()
    file = workspace.root / "pfms.db"
    content = file.read_bytes()
    match damage:
        case "missing":
            file.unlink()
        case "garbage":
            file.write_bytes(b"this is no database" * 1000)
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "page":
            file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    records = opened(workspace)
    assert sorted(one.id for one in records.page(limit=99)) == sorted(one.id for one in written)
    assert records.reindex() == 40
    records.close()


def test_a_table_damaged_under_a_running_service_is_rebuilt(workspace: Workspace) -> None:
    records = opened(workspace)
    one = with_folder(workspace, records, job())
    records.close()
    file = workspace.root / "pfms.db"
    file.write_bytes(file.read_bytes()[:4096] + b"\xff" * 200_000)
    records.write(one.moved("running"))
    found = records.get(ID)
    assert found is not None
    assert found.state == "running"
    records.close()


def test_a_folder_without_a_readable_record_stops_nothing(workspace: Workspace) -> None:
    (workspace.jobs / "notes").mkdir()
    (workspace.jobs / "notes" / "job.json").write_text("{")
    records = opened(workspace)
    with_folder(workspace, records, job())
    assert records.reindex() == 1
    records.close()


def test_events_are_told_in_order_and_again_from_any_number(workspace: Workspace) -> None:
    records = opened(workspace)
    one = with_folder(workspace, records, job())
    records.progress(ID, {"id": ID, "state": "running", "stage": "loading"})
    records.write(one.moved("running"))
    events = records.events(ID)
    assert [event.kind for event in events] == ["state", "progress", "state"]
    assert [event.n for event in events] == sorted({event.n for event in events})
    assert records.events(ID, events[0].n) == events[1:]
    records.close()


def test_event_numbers_grow_though_the_table_was_lost(workspace: Workspace) -> None:
    records = opened(workspace)
    with_folder(workspace, records, job())
    last = records.events(ID)[-1].n
    records.close()
    (workspace.root / "pfms.db").unlink()
    records = opened(workspace)
    assert records.events(ID)[0].n > last
    records.close()


def test_job_json_can_be_read_by_a_person(workspace: Workspace) -> None:
    records = opened(workspace)
    with_folder(workspace, records, job())
    text = workspace.job(ID).record.read_text()
    assert text.startswith("{\n  ")
    assert json.loads(text)["model"]["modelID"] == "demo"
    records.close()
