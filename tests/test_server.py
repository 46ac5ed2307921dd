"""A server's life: slots, clients that go away, stops, and what it keeps out of its process."""

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest

from pfms.processes.marks import JOB_MARK, find_marked
from pfms.server import listen, url_of
from tests.conftest import Server, StartServer, eventually, nifti_bytes, seed_model
from tests.wire import FORM, Wire, form, part

WITHIN = 5  # seconds, in which every process of a run that is ended has to be gone
STAGES = ("infer", "save", "end")  # the files that tests/plugins/staged.py waits for


def folder_of(server: Server, job_id: str) -> Path:
    return server.workspace / "jobs" / job_id


def let_end(server: Server, job_id: str) -> None:
    for name in STAGES:
        (folder_of(server, job_id) / name).touch()


def log_of(server: Server, job_id: str) -> str:
    log = folder_of(server, job_id) / "plugin.log"
    return log.read_text() if log.exists() else ""


def all_say(server: Server, jobs: list[str], words: str) -> bool:
    return all(words in log_of(server, job_id) for job_id in jobs)


def states(server: Server) -> dict[str, str]:
    return {job["id"]: job["state"] for job in server.http.get("/jobs").json()["jobs"]}


@contextlib.contextmanager
def waiting_client(server: Server, **headers: str) -> Iterator[Wire]:
    """A client whose request has been sent whole, and who has not got its answer yet."""
    body = form(part(nifti_bytes()))
    with Wire(server.url) as wire:
        wire.head(
            "POST",
            "/api/v1/spleenseg/NIfTIinference/?modelID=demo",
            Content_Type=FORM,
            Content_Length=len(body),
            **headers,
        )
        wire.send(body)
        yield wire


# --- slots -----------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2])
def test_as_many_run_at_a_time_as_there_are_slots_and_the_others_wait_in_order(
    start_server: StartServer, slots: int
) -> None:
    server = start_server("staged.py", jobs_per_device=slots)
    jobs = [server.submit() for _ in range(slots + 2)]

    for n in range(len(jobs)):
        running = jobs[n : n + slots]
        eventually(partial(all_say, server, running, "Device"))
        assert states(server) == {
            **dict.fromkeys(jobs[:n], "succeeded"),
            **dict.fromkeys(running, "running"),
            **dict.fromkeys(jobs[n + slots :], "queued"),
        }
        assert [server.job(i)["place"] for i in jobs[n + slots :]] == list(range(len(jobs)))[
            : len(jobs[n + slots :])
        ]
        let_end(server, jobs[n])
        server.ended(jobs[n])


def test_a_full_queue_refuses_with_the_time_to_try_again(start_server: StartServer) -> None:
    server = start_server("staged.py", queue_limit=1)
    running, waiting = server.submit(), server.submit()

    with Wire(server.url) as wire:  # before the body arrives
        wire.head(
            "POST",
            "/api/v1/spleenseg/NIfTIinference?modelID=demo",
            Content_Type=FORM,
            Content_Length=1000,
        )
        answer = wire.answer()

    assert (answer.status, answer.json()["code"]) == (503, "queue-full")
    assert int(answer.headers["Retry-After"]) >= 1
    assert set(states(server)) == {running, waiting}


# --- clients that go away --------------------------------------------------------------------


def test_a_client_that_leaves_its_blocking_call_cancels_the_run(
    start_server: StartServer,
) -> None:
    server = start_server("ignores_term.py", grace_seconds=1)
    with waiting_client(server):
        eventually(lambda: [i for i in states(server) if "ignoring" in log_of(server, i)])
        (job_id,) = states(server)
        assert len(find_marked(JOB_MARK, job_id)) == 4  # its keeper is one of them
        left = time.monotonic()
    eventually(lambda: not find_marked(JOB_MARK, job_id))

    assert time.monotonic() - left < WITHIN
    job = server.ended(job_id)
    assert (job["state"], job["error"]["code"]) == ("cancelled", "cancelled")
    assert "client" in job["error"]["detail"]
    assert json.loads((folder_of(server, job_id) / "job.json").read_bytes())["held"]
    again = server.submit()  # the slot is free
    eventually(lambda: "ignoring" in log_of(server, again))
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    "headers", [{"Prefer": "wait=1000"}, {"Idempotency_Key": "key"}], ids=["wait", "key"]
)
def test_a_client_that_leaves_another_call_leaves_its_run(
    start_server: StartServer, headers: dict[str, str]
) -> None:
    server = start_server("staged.py")
    with waiting_client(server, **headers):
        eventually(lambda: [i for i in states(server) if "Device" in log_of(server, i)])
    (job_id,) = states(server)
    eventually(lambda: "the client went away" in server.log.read_text())

    let_end(server, job_id)

    assert server.ended(job_id)["state"] == "succeeded"


def test_a_client_that_leaves_while_its_job_waits_removes_it_from_the_queue(
    start_server: StartServer,
) -> None:
    server = start_server("staged.py")
    running = server.submit()
    with waiting_client(server):
        eventually(lambda: len(states(server)) == 2)
    (waiting,) = set(states(server)) - {running}

    job = server.ended(waiting)

    assert (job["state"], job["attempts"]) == ("cancelled", 0)
    assert states(server)[running] == "running"


# --- stops -----------------------------------------------------------------------------------


def test_a_stop_ends_the_run_tells_its_client_and_leaves_the_job_for_the_next_server(
    start_server: StartServer,
) -> None:
    server = start_server("ignores_term.py", grace_seconds=1, drain_seconds=0)
    with waiting_client(server) as wire:
        eventually(lambda: [i for i in states(server) if "ignoring" in log_of(server, i)])
        (job_id,) = states(server)
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        answer = wire.answer()
        eventually(lambda: not find_marked(JOB_MARK, job_id))
        assert time.monotonic() - told < WITHIN

    assert (answer.status, answer.json()["code"]) == (503, "interrupted")
    assert answer.headers["X-Pfms-Job"] == answer.json()["job"] == job_id
    assert int(answer.headers["Retry-After"]) >= 1
    assert server.stop() == 0
    record = json.loads((folder_of(server, job_id) / "job.json").read_bytes())
    assert (record["state"], record["error"]) == ("queued", None)
    assert "Traceback" not in server.log.read_text()

    following = start_server("ok.py", workspace=server.workspace)
    job = following.ended(job_id)
    assert (job["state"], job["attempts"]) == ("succeeded", 1), "a stop is no failed attempt"
    assert "ignoring" not in log_of(following, job_id)


def test_a_stop_lets_runs_finish_and_accepts_nothing_new(
    start_server: StartServer,
) -> None:
    server = start_server("staged.py", drain_seconds=60)
    with waiting_client(server) as wire:
        eventually(lambda: [i for i in states(server) if "Device" in log_of(server, i)])
        (running,) = states(server)
        waiting = [server.submit(), server.submit()]
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.http.get(f"{server.url}/health/ready").status_code == 503)
        ready = server.http.get(f"{server.url}/health/ready").json()
        refusal = server.infer()
        cancelled = server.http.post(f"/jobs/{waiting[0]}/cancel")
        let_end(server, running)
        answer = wire.answer()

    assert "draining" in ready["missing"]
    assert (refusal.status_code, refusal.json()["code"]) == (503, "not-ready")
    assert "retry-after" in refusal.headers
    assert cancelled.json()["state"] == "cancelled", cancelled.text
    assert answer.status == 200, answer.body
    assert server.stop() == 0
    for job_id, state in ((running, "succeeded"), (waiting[1], "queued")):
        assert json.loads((folder_of(server, job_id) / "job.json").read_bytes())["state"] == state
    assert "Traceback" not in server.log.read_text()


def test_a_second_signal_ends_the_patience_of_a_stop(start_server: StartServer) -> None:
    server = start_server("hangs.py", drain_seconds=1000)
    job_id = server.submit()
    eventually(lambda: "hanging" in log_of(server, job_id))

    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: server.http.get(f"{server.url}/health/ready").status_code == 503)

    assert server.stop(signal.SIGINT) == 0
    assert find_marked(JOB_MARK, job_id) == []


def test_a_job_that_a_stop_has_put_back_can_still_be_cancelled(start_server: StartServer) -> None:
    server = start_server(
        "as_the_model_says.py", jobs_per_device=2, drain_seconds=0.1, grace_seconds=5
    )
    for name in ("hangs", "ignores_term"):
        seed_model(server.workspace, name, name.encode())
    jobs = [server.submit(model=name) for name in ("hangs", "ignores_term")]
    eventually(lambda: all("\n" in log_of(server, job_id) for job_id in jobs))

    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: states(server)[jobs[0]] == "queued")
    answer = server.http.post(f"/jobs/{jobs[0]}/cancel")

    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    server.process.send_signal(signal.SIGKILL)


def test_clients_waiting_in_the_queue_learn_at_once_that_the_server_stops(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", drain_seconds=1000, grace_seconds=0.2)
    running = server.submit()
    with ThreadPoolExecutor(4) as clients:
        waiting = [clients.submit(server.infer) for _ in range(4)]
        eventually(lambda: len(states(server)) == 5)
        server.process.send_signal(signal.SIGTERM)
        answers = [one.result() for one in waiting]

    assert {answer.json()["code"] for answer in answers} == {"interrupted"}
    assert {answer.headers["x-pfms-job"] for answer in answers} == set(states(server)) - {running}
    assert states(server)[running] == "running"
    server.process.send_signal(signal.SIGTERM)
    assert server.stop() == 0


# --- the process -----------------------------------------------------------------------------


def test_no_torch_is_in_the_server_before_or_after_a_run(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    for _ in range(2):
        libraries = {Path(part.path).name for part in process.memory_maps()}
        assert any(name.startswith("libpython") or "python" in name for name in libraries)
        for name in ("torch", "matplotlib", "scipy", "libgomp"):
            assert not [library for library in libraries if name in library]
        assert server.infer().status_code == 200


def test_a_server_leaves_no_process_and_no_open_file_of_a_run_behind(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    server.infer()
    eventually(lambda: not process.children(recursive=True))
    before = process.num_fds()

    for seed in range(3):
        server.infer(nifti_bytes(seed=seed))
        server.http.post(
            "/spleenseg/NIfTIinference/", params={"modelID": "no"}, files={"file": b""}
        )

    eventually(lambda: process.num_fds() <= before)
    assert process.children(recursive=True) == []


def test_many_clients_at_once_get_all_an_answer(start_server: StartServer) -> None:
    server = start_server("empty.py", jobs_per_device=2)
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda seed: server.infer(nifti_bytes(seed=seed)), range(24)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-pfms-job"] for answer in answers}) == 24
    assert server.uploads() == []


def test_what_was_being_received_when_a_server_died_is_cleared_by_the_next(
    start_server: StartServer,
) -> None:
    server = start_server()
    with Wire(server.url) as wire:
        wire.head(
            "POST",
            "/api/v1/spleenseg/NIfTIinference?modelID=demo",
            Content_Type=FORM,
            Content_Length=9_000_000,
        )
        wire.send(part(bytes(3_000_000)))
        eventually(server.uploads)
        server.stop(signal.SIGKILL)
    assert server.uploads()

    following = start_server(workspace=server.workspace)

    assert following.uploads() == []
    assert following.infer().status_code == 200


def test_a_connection_does_not_hold_back_the_body_of_an_answer() -> None:
    """Head and body are two writes: without TCP_NODELAY the second waits 40 ms for an echo."""
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert url_of(sock) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)):
            connection, _ = sock.accept()
            with connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_ipv6_is_listened_on_and_named_as_a_url() -> None:
    try:
        sock = listen("::1", 0)
    except Exception:
        pytest.skip("this machine has no IPv6")
    with sock:
        assert url_of(sock) == f"http://[::1]:{sock.getsockname()[1]}"
