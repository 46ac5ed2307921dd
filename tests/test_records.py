import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pfms.errors import JobNotFound
from pfms.jobs import folders
from pfms.jobs.events import Event
from pfms.jobs.folders import read_record
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


def test_a_record_comes_back_as_it_was_written(workspace: Workspace) -> None:
    records = opened(workspace)
    one = with_folder(workspace, records, job(warnings=["ä"], rerun_of=ID))
    assert records.get(ID) == one
    assert Job.model_validate_json(workspace.job(ID).record.read_bytes()) == one
    records.close()


def test_pages_go_from_new_to_old_without_gap_or_repetition(workspace: Workspace) -> None:
    records = opened(workspace)
    for n, job_id in enumerate(ids(7)):
        # two have the same time: the ID decides
        moment = f"2026-11-23T15:00:0{n // 2}.000000Z"
        with_folder(workspace, records, job(id=job_id, created_at=moment))
    seen: list[str] = []
    before = None
    while page := records.page(limit=2, before=before):
        seen += [one.id for one in page]
        before = (page[-1].created_at, page[-1].id)
    assert seen == ids(7)[::-1]
    records.close()


def test_filters_can_be_combined(workspace: Workspace) -> None:
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
    records.write_file(workspace.job(ID), ahead)  # and a crash came before the row was written
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


def test_a_folder_without_a_readable_record_does_no_harm(workspace: Workspace) -> None:
    (workspace.jobs / "notes").mkdir()
    (workspace.jobs / "notes" / "job.json").write_text("{")
    records = opened(workspace)
    with_folder(workspace, records, job())
    assert records.reindex() == 1
    records.close()


def test_events_come_in_order_and_can_be_replayed_from_any_number(workspace: Workspace) -> None:
    records = opened(workspace)
    running = with_folder(workspace, records, job()).moved("running")
    records.write(running)
    records.progress(ID, {"id": ID, "state": "running", "stage": "loading"})
    records.write(running.moved("failed"))
    events = records.events(ID)
    assert [event.kind for event in events] == ["state", "state", "progress", "state"]
    assert [event.n for event in events] == sorted({event.n for event in events})
    assert records.events(ID, events[0].n) == events[1:]
    records.close()


def test_event_numbers_grow_even_if_the_table_is_lost(workspace: Workspace) -> None:
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


# --- events ----------------------------------------------------------------------------------


def test_every_state_and_the_newest_progress_of_each_stage_are_kept(workspace: Workspace) -> None:
    records = opened(workspace)
    running = with_folder(workspace, records, job()).moved("running")
    records.write(running)
    told: list[Event] = []
    for stage in ("loading", "inferring", "saving"):
        for done in range(200):
            event = records.progress(ID, {"id": ID, "stage": stage, "done": done})
            assert event is not None
            told.append(event)
    kept = records.events(ID)
    assert [event.kind for event in kept] == ["state"] * 2 + ["progress"] * 3
    assert kept[2:] == [told[199], told[399], told[599]]
    assert records.events(ID, told[300].n) == kept[3:], "what came after, without repetition"
    assert records.events(ID, told[599].n) == []
    records.write(running.moved("succeeded"))
    assert [event.data["state"] for event in records.events(ID, told[599].n)] == ["succeeded"]
    records.close()


def test_a_change_that_clients_cannot_see_makes_no_event(workspace: Workspace) -> None:
    records = opened(workspace)
    ended = with_folder(workspace, records, job()).moved("cancelled")
    last = records.write(ended)
    assert records.write(ended.changed(purged_at="2026-11-24T15:00:00.000000Z")) == last
    assert records.events(ID)[-1] == last
    records.close()


# --- what was removed ------------------------------------------------------------------------


def test_nothing_is_written_for_a_job_that_was_forgotten(workspace: Workspace) -> None:
    records = opened(workspace)
    running = with_folder(workspace, records, job()).moved("running")
    records.write(running)
    workspace.remove_job(ID)
    records.forget(ID)
    assert records.progress(ID, {"id": ID, "stage": "saving"}) is None
    for write in (records.write, records.write_row):
        with pytest.raises(JobNotFound):
            write(running.moved("succeeded"))
    assert records.get(ID) is None
    assert records.events(ID) == []
    assert workspace.job_ids() == []
    records.close()


def test_no_write_recreates_the_folder_of_an_ended_job(workspace: Workspace) -> None:
    records = opened(workspace)
    ended = with_folder(workspace, records, job()).moved("cancelled")
    records.write(ended)
    workspace.remove_job(ID)  # `forget` has not been called yet
    with pytest.raises(JobNotFound):
        records.write(ended.changed(purged_at="2026-11-24T15:00:00.000000Z"))
    assert workspace.job_ids() == []
    assert records.get(ID) == ended
    records.close()


def test_a_running_job_whose_folder_someone_removed_ends_in_its_row(workspace: Workspace) -> None:
    records = opened(workspace)
    running = with_folder(workspace, records, job()).moved("running")
    records.write(running)
    workspace.remove_job(ID)
    ended = running.moved("failed")
    assert records.write(ended).data["state"] == "failed"
    assert records.get(ID) == ended
    assert workspace.job_ids() == []
    records.close()


# --- bad rows --------------------------------------------------------------------------------

BAD_RECORDS = {
    "no JSON": "{",
    "no UTF-8": b"{\xff}",
    "an array": "[]",
    "of another job": job(id=ID[:-1] + "0").model_dump_json(),
    "a state of a newer pfms": job().model_dump_json().replace('"queued"', '"paused"'),
}


@pytest.mark.parametrize("record", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_an_unreadable_row_is_kept_and_does_not_affect_others(
    workspace: Workspace, record: str | bytes
) -> None:
    records = opened(workspace)
    first, bad, last = ids(3)
    for job_id in (first, bad, last):
        running = with_folder(workspace, records, job(id=job_id, idempotency_key="k"))
        records.write(running.moved("running").moved("succeeded", seconds=1.0))
    table = sqlite3.connect(workspace.root / "pfms.db")
    with table:
        query = "UPDATE jobs SET record = CAST(? AS TEXT), created_at = '2027' WHERE id = ?"
        table.execute(query, (record, bad))
    assert records.get(bad) is None
    assert [one.id for one in records.page(limit=2)] == [last, first], "a page stays full"
    key = records.by_key("k")
    assert key is not None
    assert key.id == last
    assert len(records.ended_before("9999", purged=True)) == 2
    assert len(records.last_seconds(9)) == 2
    assert records.active() == []
    assert table.execute("SELECT count(*) FROM jobs").fetchone() == (3,)
    table.close()
    records.close()


# --- starting --------------------------------------------------------------------------------


def test_after_an_interrupted_purge_the_row_follows_the_folder(workspace: Workspace) -> None:
    records = opened(workspace)
    ended = with_folder(workspace, records, job()).moved("cancelled")
    records.write(ended)
    purged = ended.changed(purged_at="2026-11-24T15:00:00.000000Z")
    records.write_file(workspace.job(ID), purged)  # and a crash came before the row was written
    records.close()
    records = opened(workspace)
    assert records.get(ID) == purged
    records.close()


def test_a_start_reads_only_the_records_that_changed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = opened(workspace)
    for job_id in ids(5):
        ended = with_folder(workspace, records, job(id=job_id)).moved("cancelled")
        records.write(ended)
    again = ended.changed(warnings=["it was looked at"])
    records.write_file(workspace.job(again.id), again)
    records.close()
    read: list[str] = []

    def noting(job_id: str, record: Path) -> tuple[Job, str]:
        read.append(job_id)
        return read_record(job_id, record)

    monkeypatch.setattr(folders, "read_record", noting)
    for expected in ([again.id], []):
        opened(workspace).close()
        assert read == expected
        read.clear()


def test_a_key_that_two_jobs_share_refers_to_the_newer_one(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    records = opened(workspace)
    older, newer = ids(2)
    with_folder(workspace, records, job(id=older, idempotency_key="k"))
    away = workspace.job(older).root.rename(workspace.root / "away")
    records.close()
    records = opened(workspace)
    moment = "2026-11-24T00:00:00.000000Z"
    with_folder(workspace, records, job(id=newer, created_at=moment, idempotency_key="k"))
    records.close()
    away.rename(workspace.job(older).root)
    records = opened(workspace)
    assert {one.id for one in records.page(limit=9)} == {older, newer}
    found = records.by_key("k")
    assert found is not None
    assert found.id == newer
    assert f"{newer}, {older} share one Idempotency-Key" in caplog.text
    records.close()


def test_an_old_table_is_migrated_with_its_events(workspace: Workspace) -> None:
    table = sqlite3.connect(workspace.root / "pfms.db")
    table.executescript(OLD_TABLE)
    ended = job(idempotency_key="k").moved("running").moved("succeeded", seconds=3.0)
    kept, unreadable = ids(2)
    for job_id in (kept, unreadable):
        one = ended.model_copy(update={"id": job_id, "idempotency_key": job_id})
        workspace.job(job_id).lay_out()
        workspace.job(job_id).record.write_text(one.model_dump_json())
        values = (job_id, 3, "succeeded", "demo", one.created_at, one.ended_at, job_id)
        table.execute(
            "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, NULL, ?, ?)",
            (*values, one.model_dump_json(exclude={"schema_version"})),
        )
    workspace.job(unreadable).record.write_text("{")
    written = [("state", "{}"), *[("progress", '{"stage": "loading"}')] * 50]
    last = ("state", json.dumps({"id": kept, "state": "succeeded", "error": None}))
    for n, (kind, data) in enumerate([*written, last]):
        table.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (7 + n, kept, kind, data))
    table.commit()
    table.close()

    records = opened(workspace)
    assert [one.id for one in records.page(limit=9)] == [unreadable, kept]
    assert [event.n for event in records.events(kept)] == [7, 57, 58]
    found = records.by_key(kept)
    assert found is not None
    assert (found.seconds, found.schema_version) == (3.0, 1)
    records.close()
    records = opened(workspace)
    assert len(records.events(kept)) == 3
    records.close()


OLD_TABLE = """
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
INSERT INTO alembic_version VALUES ('0001');
CREATE TABLE jobs (
    id VARCHAR NOT NULL PRIMARY KEY, revision INTEGER NOT NULL, state VARCHAR NOT NULL,
    model_id VARCHAR NOT NULL, created_at VARCHAR NOT NULL, ended_at VARCHAR, purged_at VARCHAR,
    idempotency_key VARCHAR UNIQUE, record TEXT NOT NULL
);
CREATE INDEX jobs_by_time ON jobs (created_at, id);
CREATE INDEX jobs_by_end ON jobs (ended_at);
CREATE TABLE events (
    n INTEGER NOT NULL PRIMARY KEY, job_id VARCHAR NOT NULL, kind VARCHAR NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX events_of_job ON events (job_id, n);
"""
