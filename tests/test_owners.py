"""A job is known to its owner and to `admin`; to anyone else there is no such job."""

import json
import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from pfms.access.caller import Caller, Scope
from pfms.jobs.table import Records
from pfms.storage.workspace import Workspace
from tests.conftest import Server, StartServer, eventually, nifti_bytes, seed_model, start
from tests.test_job import ID, job
from tests.test_records import ids, opened, with_folder, workspace  # noqa: F401 (a fixture)

NAMED = ("-m", "tests.named_callers")
NOBODYS = f"{ID[:-3]}fff"


def headers(name: str, *scopes: Scope) -> dict[str, str]:
    return {"Test-Caller": " ".join([name, *(scopes or ("infer",))])}


ALICE, BOB, ADMIN = headers("alice"), headers("bob"), headers("root", "admin")


def listed(server: Server, caller: dict[str, str], query: str = "") -> list[str]:
    answer = server.http.get(f"/jobs{query}", headers=caller)
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["jobs"]]


def got(server: Server, job_id: str, caller: dict[str, str]) -> int:
    return server.http.get(f"/jobs/{job_id}", headers=caller).status_code


def has_ended(server: Server, job_id: str) -> object:
    return server.http.get(f"/jobs/{job_id}", headers=ADMIN).json()["ended_at"]


def wait_for(server: Server, *job_ids: str) -> None:
    eventually(lambda: all(has_ended(server, job_id) for job_id in job_ids))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("owners") / "workspace"
    seed_model(folder)
    server = start(folder, program=NAMED)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def alices(shared: Server) -> str:
    """A job of Alice that has ended."""
    job_id = shared.submit(headers=ALICE)
    wait_for(shared, job_id)
    return job_id


def test_its_owner_and_admin_see_a_job_and_nobody_else_does(shared: Server, alices: str) -> None:
    assert [got(shared, alices, caller) for caller in (ALICE, BOB, ADMIN, {})] == [
        *(200, 404, 200),
        200,  # without tokens, everyone may do everything
    ]
    assert shared.http.get(f"/jobs/{alices}", headers=ALICE).json()["owner"] == "alice"


def test_in_every_call_with_an_id_anothers_job_is_as_good_as_none(
    shared: Server, alices: str
) -> None:
    folder = shared.workspace / "jobs" / alices
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    document = shared.http.get(f"{shared.url}/openapi.json").json()
    routes = [
        (method, path)
        for path, methods in document["paths"].items()
        for method in methods
        if re.search(r"{\w*id}", path) or path.startswith("/api/v1/jobs/")
    ]
    assert len(routes) >= 9
    queries = {"delete": ["", "?purge=voxels"], "get": ["", "?voxels=true&resultant=logits"]}

    def answer(job_id: str, method: str, path: str) -> httpx.Response:
        url = shared.url + re.sub(r"{\w+}", job_id, path)
        return shared.http.request(
            method, url, headers={**BOB, "Last-Event-ID": "1", "If-None-Match": "*"}
        )

    def shown(given: httpx.Response, job_id: str) -> tuple[int, dict[str, str], str]:
        own = ("date", "traceparent")  # each answer has its own
        shown_headers = {name: value for name, value in given.headers.items() if name not in own}
        return given.status_code, shown_headers, given.text.replace(job_id, "ID")

    for method, path in routes:
        for query in queries.get(method, [""]):
            theirs = answer(alices, method, path + query)
            none = answer(NOBODYS, method, path + query)
            assert theirs.status_code == 404, (method, path, theirs.text)
            assert theirs.json()["code"] == "job-not-found"
            assert shown(theirs, alices) == shown(none, NOBODYS)
            head = shared.http.head(theirs.url, headers=BOB)
            assert head.status_code in (404, 405), (path, head.status_code)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert got(shared, alices, ALICE) == 200


def test_the_owner_may_make_every_call(shared: Server) -> None:
    job_id = shared.submit(headers=ALICE)
    wait_for(shared, job_id)
    paths = ("", "/log", "/result", "/volume", "/preview.png", "/bundle", "/bundle?voxels=true")
    for path in paths:
        assert shared.http.get(f"/jobs/{job_id}{path}", headers=ALICE).status_code == 200, path
    events = shared.http.get(f"/jobs/{job_id}/events", headers=ALICE).text
    assert '"succeeded"' in events
    again = shared.http.post(f"/jobs/{job_id}/rerun", headers=ALICE).json()
    wait_for(shared, again["id"])
    assert shared.http.post(f"/jobs/{job_id}/cancel", headers=ALICE).status_code == 200
    for query in ("?purge=voxels", ""):
        assert shared.http.delete(f"/jobs/{job_id}{query}", headers=ALICE).status_code == 204
    assert again["id"] in listed(shared, ALICE)


def test_a_rerun_belongs_to_who_reran_it(shared: Server, alices: str) -> None:
    again = shared.http.post(f"/jobs/{alices}/rerun", headers=ADMIN).json()
    assert (again["owner"], again["rerun_of"]) == ("root", alices)
    assert got(shared, again["id"], ALICE) == 404
    wait_for(shared, again["id"])


def test_a_list_has_the_callers_jobs_alone_page_by_page(shared: Server) -> None:
    dora, emil = headers("dora"), headers("emil")
    made: dict[str, list[str]] = {"dora": [], "emil": []}
    for n in range(6):
        name = "dora" if n % 2 else "emil"
        made[name].insert(0, shared.submit(headers=headers(name)))
    wait_for(shared, *made["dora"], *made["emil"])
    seen: list[str] = []
    query = "?limit=2&state=succeeded&modelID=demo"
    while query:
        page = shared.http.get(f"/jobs{query}", headers=dora).json()
        seen += [one["id"] for one in page["jobs"]]
        query = f"?limit=2&cursor={page['next']}" if page["next"] else ""
    assert seen == made["dora"]
    assert listed(shared, emil) == made["emil"]
    assert {*made["dora"], *made["emil"]} <= set(listed(shared, ADMIN, "?limit=1000"))
    assert listed(shared, headers("nobody")) == []


def test_a_key_of_another_caller_neither_joins_nor_conflicts(shared: Server) -> None:
    key = {"Idempotency-Key": "same"}
    mine = shared.submit(headers={**ALICE, **key})
    others = shared.submit(nifti_bytes(seed=1), headers={**BOB, **key})
    assert mine != others
    assert shared.submit(headers={**ALICE, **key}) == mine
    assert shared.submit(nifti_bytes(seed=1), headers={**BOB, **key}) == others
    assert shared.submit(headers={**ADMIN, **key}) not in (mine, others)
    mismatch = shared.infer(headers={**BOB, **key})
    assert (mismatch.status_code, mismatch.json()["job"]) == (422, others)


def test_simultaneous_repeats_make_one_job_for_each_caller(shared: Server) -> None:
    def submit(name: str) -> str:
        return shared.submit(headers={**headers(name), "Idempotency-Key": "at once"})

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(submit, ["fritz", "gerda"] * 8))
    assert len(set(made[::2])) == len(set(made[1::2])) == 1
    assert made[0] != made[1]


def test_the_owner_is_the_same_after_a_restart_and_after_the_loss_of_the_table(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", program=NAMED)
    running, waiting = (server.submit(headers=ALICE) for _ in range(2))
    for lost in (False, True):
        server.stop()
        if lost:
            (server.workspace / "pfms.db").unlink()
        server = start_server("hangs.py", program=NAMED)
        assert listed(server, ALICE) == [waiting, running]
        assert listed(server, BOB) == []
        assert got(server, waiting, BOB) == 404


# --- the table ---------------------------------------------------------------------------------


def test_the_table_of_the_version_before_gets_an_owner_for_each_row(
    workspace: Workspace,  # noqa: F811
) -> None:
    records = opened(workspace)
    ours, alices_own, unreadable = ids(3)
    with_folder(workspace, records, job(id=ours, idempotency_key="k"))
    with_folder(workspace, records, job(id=alices_own, idempotency_key="k", owner="alice"))
    with_folder(workspace, records, job(id=unreadable))
    records.close()
    table = sqlite3.connect(workspace.root / "pfms.db")
    table.executescript(
        "DROP INDEX jobs_by_bytes; ALTER TABLE jobs DROP COLUMN bytes;"
        "DROP INDEX jobs_by_owner; DROP INDEX jobs_by_key; ALTER TABLE jobs DROP COLUMN owner;"
        "CREATE INDEX jobs_by_key ON jobs (idempotency_key) WHERE idempotency_key IS NOT NULL;"
        "PRAGMA user_version = 1;"
        f"UPDATE jobs SET record = '{{' WHERE id = '{unreadable}'"
    )
    table.close()

    records = opened(workspace)
    assert not list(workspace.root.glob("*.damaged-*"))
    assert [one.id for one in records.page(limit=9)] == [alices_own, ours]
    assert pages(records, "alice") == [alices_own]
    assert pages(records, None) == [ours]
    assert [keyed(records, owner) for owner in (None, "alice", "bob")] == [ours, alices_own, None]
    records.close()


def test_a_key_may_belong_to_a_job_of_each_owner(
    workspace: Workspace,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = opened(workspace)
    for job_id, owner in zip(ids(3), (None, "alice", "bob"), strict=True):
        with_folder(workspace, records, job(id=job_id, idempotency_key="k", owner=owner))
    records.close()
    records = opened(workspace)
    assert "share one Idempotency-Key" not in caplog.text
    assert keyed(records, "bob") == ids(3)[2]
    records.close()


@pytest.mark.parametrize(
    ("query", "values", "index"),
    [
        ("owner IS ? ORDER BY created_at DESC, id DESC", ("alice",), "jobs_by_owner"),
        ("idempotency_key = ? AND owner IS ?", ("k", "alice"), "jobs_by_key"),
    ],
)
def test_what_is_asked_of_an_owner_uses_an_index(
    workspace: Workspace,  # noqa: F811
    query: str,
    values: tuple[str, ...],
    index: str,
) -> None:
    opened(workspace).close()
    table = sqlite3.connect(workspace.root / "pfms.db")
    plan = table.execute(f"EXPLAIN QUERY PLAN SELECT id, record FROM jobs WHERE {query}", values)
    steps: list[Any] = [row[-1] for row in plan.fetchall()]
    table.close()
    assert len(steps) == 1, steps
    assert index in steps[0]


def pages(records: Records, name: str | None) -> list[str]:
    return [one.id for one in records.page(limit=9, seen_by=Caller(name, frozenset({"infer"})))]


def keyed(records: Records, owner: str | None) -> str | None:
    found = records.by_key("k", owner)
    return found.id if found else None


def test_a_record_without_an_owner_is_read_as_before() -> None:
    record = json.loads(job().model_dump_json())
    del record["owner"]
    assert type(job()).model_validate(record).owner is None
