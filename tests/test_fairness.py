"""The many volumes of one caller don't keep another one's waiting."""

from tests.conftest import Server, StartServer, eventually
from tests.test_owners import ADMIN, ALICE, BOB, NAMED

MANY = 25


def places(server: Server) -> list[str]:
    """The waiting jobs by the place that each one's own call tells, the next one first."""
    waiting = server.http.get("/jobs?state=queued&limit=1000", headers=ADMIN).json()["jobs"]
    told = [server.http.get(f"/jobs/{one['id']}", headers=ADMIN).json() for one in waiting]
    told.sort(key=lambda one: (one["place"], one["estimated_start"]))
    assert [one["place"] for one in told] == list(range(len(told)))
    starts = [one["estimated_start"] for one in told]
    assert starts == sorted(starts)
    return [one["id"] for one in told]


def running(server: Server) -> list[str]:
    return [
        one["id"] for one in server.http.get("/jobs?state=running", headers=ADMIN).json()["jobs"]
    ]


def end_one(server: Server, job_id: str) -> None:
    server.http.post(f"/jobs/{job_id}/cancel", headers=ADMIN)
    eventually(lambda: job_id not in running(server) and running(server))


def test_one_job_beside_many_of_another_starts_next_and_its_place_says_so(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", program=NAMED)
    first, *many = [server.submit(headers=ALICE) for _ in range(MANY)]
    eventually(lambda: running(server) == [first])
    one = server.submit(headers=BOB)
    another = server.submit(headers=BOB)
    told = places(server)
    assert told == [one, many[0], another, *many[1:]]
    for job_id in told[:4]:
        end_one(server, running(server)[0])
        assert running(server) == [job_id]


def test_a_queue_that_one_caller_has_filled_takes_one_job_of_another(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", program=NAMED, queue_limit=1)
    for _ in range(2):
        server.submit(headers=ALICE)
    for caller, status in ((ALICE, 503), (BOB, 202), (BOB, 503), (ALICE, 503)):
        answer = server.infer(headers={"Prefer": "respond-async", **caller})
        assert answer.status_code == status, answer.text
    assert len(server.job_folders()) == 3
