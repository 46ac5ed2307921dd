import json
from typing import Any, get_args

import pytest

from pfms.errors import JobNotFound
from pfms.jobs.job import (
    CHRIS_STATUS,
    ENDED,
    TRANSITIONS,
    Job,
    ModelUsed,
    State,
    VolumeSent,
    valid_job_id,
)

ID = "2026-11-23-15-00-00-937dbf08-7784-499c-b861-12aded55745a"


def job(**fields: Any) -> Job:
    volume = VolumeSent(
        size=1,
        sha256="0" * 64,
        shape=(2, 3, 4),
        spacing=(1.0, 1.0, 2.0),
        orientation="RAS",
        dtype="int16",
        minimum=-1000.0,
        maximum=500.0,
    )
    return Job(
        **{
            "id": ID,
            "created_at": "2026-11-23T15:00:00.000000Z",
            "model": ModelUsed(modelID="demo", sha256="0" * 64),
            "volume": volume,
            "resultant": "labels",
            **fields,
        }
    )


@pytest.mark.parametrize("before", get_args(State))
@pytest.mark.parametrize("after", get_args(State))
def test_states_change_only_as_the_table_says(before: State, after: State) -> None:
    start = job(state=before)
    if after in TRANSITIONS[before]:
        moved = start.moved(after)
        assert (moved.state, moved.revision) == (after, 2)
    else:
        with pytest.raises(ValueError, match="cannot go from"):
            start.moved(after)


def test_the_ended_states_are_those_without_a_successor() -> None:
    assert sorted(ENDED) == ["cancelled", "failed", "succeeded"]
    assert set(CHRIS_STATUS) == set(TRANSITIONS) == set(get_args(State))


def test_each_step_notes_its_time_and_requeueing_clears_it() -> None:
    running = job().moved("running")
    assert running.started_at is not None
    assert running.moved("queued").started_at is None
    assert running.moved("failed").ended_at is not None


def test_a_change_cannot_set_the_state() -> None:
    with pytest.raises(ValueError, match="moved"):
        job().changed(state="failed")


@pytest.mark.parametrize(
    "text", ["", "..", f"{ID}/..", f"{ID}\n", ID.upper().replace("A", "G"), "x" * 10_000, "\0"]
)
def test_what_cannot_be_a_job_id_is_not_looked_up(text: str) -> None:
    assert valid_job_id(ID) == ID
    with pytest.raises(JobNotFound):
        valid_job_id(text)


def test_fields_that_this_pfms_does_not_know_survive_every_change() -> None:
    content = job().moved("running").model_dump(mode="json")
    content |= {"schema_version": 7, "ward": {"beds": [1, 2.5, None]}}
    for part in ("model", "volume"):
        content[part]["colour"] = "blue"
    known = Job.model_validate_json(json.dumps(content))

    ended = known.changed(warnings=["w"]).moved("failed")

    written = json.loads(ended.model_dump_json())
    assert written == {**content, **{name: written[name] for name in CHANGED}}
    assert Job.model_validate_json(ended.model_dump_json()) == ended


CHANGED = ("revision", "state", "ended_at", "warnings")


def test_a_record_without_a_version_has_the_first_one() -> None:
    content = json.loads(job().model_dump_json())
    del content["schema_version"]
    assert Job.model_validate(content).schema_version == 1


def test_a_change_of_a_field_that_no_job_has_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no field colour"):
        job().changed(colour="blue")
