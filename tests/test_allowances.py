"""What one caller may hold: jobs, uploads at a time, bytes kept. Others don't notice its limits."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from pfms.access.limits import Limits
from pfms.jobs.job import FileFacts, Segmentation
from pfms.storage.workspace import Workspace
from tests import tokens
from tests.conftest import Server, StartServer, eventually, nifti_bytes
from tests.refused import MODELPTH, TARGET, check, jobs_made
from tests.test_job import job
from tests.test_owners import ALICE, BOB, NAMED, has_ended, headers, wait_for
from tests.test_records import ids, opened, with_folder, workspace  # noqa: F401 (a fixture)
from tests.wire import FORM, Wire, form, part

VOLUME = nifti_bytes()
BODY = form(part(VOLUME))
SENT = {"Content-Type": FORM, "Prefer": "respond-async"}


def post(server: Server, caller: dict[str, str], **extra: str) -> httpx.Response:
    """POST a form of exactly `BODY`, without waiting for the end of its job."""
    path = TARGET.removeprefix("/api/v1")
    return server.http.post(path, content=BODY, headers={**SENT, **caller, **extra})


def refused(server: Server, answer: httpx.Response) -> dict[str, Any]:
    problem = check(answer, 429, "too-many-requests", server)
    assert int(answer.headers["Retry-After"]) >= 1
    assert "job" not in problem
    return problem


def accepted(answer: httpx.Response) -> str:
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


@contextmanager
def receiving(server: Server, caller: dict[str, str], target: str = TARGET) -> Iterator[Wire]:
    """An upload of which the first bytes have arrived."""
    known = len(server.uploads())
    with Wire(server.url) as wire:
        sent: dict[str, str | int] = {**SENT, "Content-Length": 10_000, **caller}
        wire.head("POST", target, **sent)
        wire.send(part(b"the first bytes")[:-2])
        eventually(lambda: len(server.uploads()) > known)
        yield wire
    eventually(lambda: len(server.uploads()) == known)


def at_once(server: Server, caller: dict[str, str], count: int) -> Counter[int]:
    with ThreadPoolExecutor(count) as threads:
        answers = list(threads.map(lambda _: post(server, caller), range(count)))
    for answer in answers:
        if answer.status_code != 202:
            refused(server, answer)
    return Counter(answer.status_code for answer in answers)


# --- jobs --------------------------------------------------------------------------------------


def test_of_many_simultaneous_posts_exactly_as_many_are_accepted_as_a_caller_may_have(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", program=NAMED, max_jobs_per_caller=3)
    assert at_once(server, ALICE, 30) == {202: 3, 429: 27}
    hers, *others = [folder.name for folder in jobs_made(server)]
    assert len(others) == 2
    accepted(post(server, BOB))
    refused(server, server.http.post(f"/jobs/{hers}/rerun", headers=ALICE))

    server.stop()
    server = start_server("hangs.py", program=NAMED, max_jobs_per_caller=3)
    refused(server, post(server, ALICE))  # they are hers after a restart, too
    server.http.post(f"/jobs/{hers}/cancel", headers=ALICE)
    eventually(lambda: has_ended(server, hers))
    eventually(lambda: post(server, ALICE).status_code == 202)
    refused(server, post(server, ALICE))


def test_a_job_counts_while_its_volume_arrives_and_no_longer_when_it_is_refused(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", program=NAMED, max_jobs_per_caller=1)
    with receiving(server, ALICE):
        refused(server, post(server, ALICE))
        accepted(post(server, BOB))
    assert server.infer(b"not a volume", headers=ALICE).status_code == 422
    accepted(post(server, ALICE))


def test_a_repeat_counts_as_the_job_that_it_joins(start_server: StartServer) -> None:
    server = start_server("hangs.py", program=NAMED, max_jobs_per_caller=1)
    key = {"Idempotency-Key": "k"}
    job_id = accepted(post(server, ALICE, **key))
    assert accepted(post(server, ALICE, **key)) == job_id
    refused(server, post(server, ALICE))


def test_the_limit_of_a_token_goes_before_the_setting(
    start_server: StartServer, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    limits: dict[str, dict[str, object]] = {
        "one": {"jobs": 1},
        "as-set": {"bytes": "1GiB"},
        "unlimited": {"jobs": 0},
        "none": {},
    }
    callers = {name: tokens.bearer(tokens.add(file, name)) for name in limits}
    document = json.loads(file.read_text())
    for name, own in limits.items():
        document["tokens"][name] |= {"limits": own} if own else {}
    file.write_text(json.dumps(document))
    tokens.add(file, "another")  # which writes the others again
    assert json.loads(file.read_text())["tokens"]["one"]["limits"] == {"jobs": 1}
    assert "limits" not in json.loads(file.read_text())["tokens"]["none"]

    server = start_server("hangs.py", tokens_file=file, max_jobs_per_caller=2)
    counts = {name: at_once(server, caller, 4)[202] for name, caller in callers.items()}
    assert counts == {"one": 1, "as-set": 2, "unlimited": 4, "none": 2}


def test_a_limit_that_is_none_stops_the_start(start_server: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    tokens.add(file, "one")
    document = json.loads(file.read_text())
    document["tokens"]["one"]["limits"] = {"jobs": -1}
    file.write_text(json.dumps(document))
    with pytest.raises(AssertionError, match=r"limits\.jobs"):
        start_server(tokens_file=file)


def test_without_names_all_callers_are_one(start_server: StartServer) -> None:
    server = start_server("hangs.py", max_jobs_per_caller=2)
    assert at_once(server, {}, 5) == {202: 2, 429: 3}


# --- uploads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [TARGET, f"/api/v1{MODELPTH}?modelID=new"])
def test_an_upload_too_many_is_refused_while_those_of_others_are_taken(
    start_server: StartServer, first: str
) -> None:
    server = start_server("hangs.py", program=NAMED, max_uploads_per_caller=1)
    caller = headers("alice", "infer", "models")
    with receiving(server, caller, first):
        refused(server, post(server, caller))
        weights = server.http.post(
            MODELPTH, params={"modelID": "other"}, files={"file": b"weights"}, headers=caller
        )
        refused(server, weights)
        accepted(post(server, BOB))
    accepted(post(server, caller))
    assert len(jobs_made(server)) == 2


# --- bytes -------------------------------------------------------------------------------------


def test_who_keeps_too_many_bytes_has_to_purge_or_remove_some(start_server: StartServer) -> None:
    limit = 2 * len(BODY)
    server = start_server(program=NAMED, max_bytes_per_caller=limit)
    first = accepted(post(server, ALICE))
    wait_for(server, first)
    record = server.http.get(f"/jobs/{first}", headers=ALICE).json()
    kept = len(VOLUME) + record["segmentation"]["size"]
    kept += sum(each["size"] for each in record["segmentation"]["files"].values())
    assert kept + len(BODY) > limit

    problem = refused(server, post(server, ALICE))
    assert problem["detail"] == f"This caller's jobs may keep {limit} bytes; they keep {kept} now."
    assert "purge" in problem["remedy"]
    refused(server, server.http.post(f"/jobs/{first}/rerun", headers=ALICE))
    accepted(post(server, BOB))

    server.http.delete(f"/jobs/{first}?purge=voxels", headers=ALICE)
    second = accepted(post(server, ALICE))
    wait_for(server, second)
    refused(server, post(server, ALICE))
    server.http.delete(f"/jobs/{second}", headers=ALICE)
    accepted(post(server, ALICE))


def test_of_many_simultaneous_posts_exactly_as_many_are_accepted_as_may_be_kept(
    start_server: StartServer,
) -> None:
    limit = 3 * len(BODY) + len(BODY) // 2
    server = start_server("hangs.py", program=NAMED, max_bytes_per_caller=limit)
    assert at_once(server, ALICE, 20) == {202: 3, 429: 17}
    assert len(jobs_made(server)) == 3
    server.stop()
    server = start_server("hangs.py", program=NAMED, max_bytes_per_caller=limit)
    refused(server, post(server, ALICE))


def test_what_is_announced_is_refused_before_it_is_sent(start_server: StartServer) -> None:
    server = start_server(program=NAMED, max_bytes_per_caller=1000)
    with Wire(server.url) as wire:
        sent: dict[str, str | int] = {**SENT, "Content-Length": 1001, **ALICE}
        wire.head("POST", TARGET, **sent)
        answer = wire.answer()
    assert (answer.status, answer.json()["code"]) == (429, "too-many-requests")
    assert jobs_made(server) == []


def test_what_is_not_announced_is_counted_once_it_has_come(start_server: StartServer) -> None:
    server = start_server("hangs.py", program=NAMED, max_bytes_per_caller=len(VOLUME) * 3 // 2)
    path = TARGET.removeprefix("/api/v1")

    def post_chunked() -> httpx.Response:
        return server.http.post(path, content=iter([BODY]), headers={**SENT, **ALICE})

    accepted(post_chunked())
    refused(server, post_chunked())
    assert len(jobs_made(server)) == 1


def test_the_bytes_of_every_row_are_counted_also_in_the_table_of_the_version_before(
    workspace: Workspace,  # noqa: F811
) -> None:
    records = opened(workspace)
    volume, done, purged, others, unreadable = ids(5)
    size = job().volume.size
    made = Segmentation(
        sha256="0",
        voxels_sha256="0",
        size=100,
        spleen_voxels=1,
        spleen_ml=1.0,
        files={"onehot": FileFacts(size=20, sha256="0"), "logits": FileFacts(size=3, sha256="0")},
    )
    for job_id in (volume, done, purged, others, unreadable):
        owner = "bob" if job_id == others else "alice"
        one = with_folder(workspace, records, job(id=job_id, owner=owner))
        if job_id != volume:
            one = one.moved("running").moved("succeeded", segmentation=made)
        records.write(one.purged() if job_id == purged else one)
    expected = {"alice": 3 * size + 2 * 123, "bob": size + 123, None: 0}
    assert {owner: records.bytes_kept(owner) for owner in expected} == expected
    records.close()

    table = sqlite3.connect(workspace.root / "pfms.db")
    query = "SELECT coalesce(sum(bytes), 0) FROM jobs WHERE owner IS ? AND bytes > 0"
    [plan] = table.execute(f"EXPLAIN QUERY PLAN {query}", ("alice",)).fetchall()
    assert "COVERING INDEX jobs_by_bytes" in plan[-1]
    table.executescript(
        f"UPDATE jobs SET record = '{{' WHERE id = '{unreadable}'; DROP INDEX jobs_by_bytes;"
        "ALTER TABLE jobs DROP COLUMN bytes; PRAGMA user_version = 2"
    )
    table.close()
    records = opened(workspace)
    assert not list(workspace.root.glob("*.damaged-*"))
    expected["alice"] -= size + 123
    assert {owner: records.bytes_kept(owner) for owner in expected} == expected
    records.close()


# --- what a token may say ----------------------------------------------------------------------


def test_limits_are_numbers_and_sizes_with_units() -> None:
    given = Limits.model_validate({"jobs": 2, "uploads": 0, "bytes": "2.5GiB"})
    assert (given.jobs, given.uploads, given.bytes) == (2, 0, 5 << 29)
    assert Limits() == Limits(jobs=None, uploads=None, bytes=None)


@pytest.mark.parametrize(
    "limits", [{"jobs": -1}, {"uploads": 1.5}, {"bytes": "2,5GiB"}, {"bytes": -1}, {"runs": 1}]
)
def test_other_limits_are_an_error(limits: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate(limits)
