"""Clients that have finished sending, are gone, or stay silent: over raw connections."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Server, StartServer, eventually, seed_model, start
from tests.refused import INFER, MODELPTH, TARGET, files_of, is_problem, jobs_made, request
from tests.wire import FORM, Wire, part

IDLE = 1  # second, of `hasty_server`


@pytest.fixture(scope="module")
def hasty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that waits only a second for a silent client."""
    workspace = tmp_path_factory.mktemp("hasty-server") / "workspace"
    seed_model(workspace)
    one = start(workspace, "staged.py", idle_seconds=IDLE)
    yield one
    one.stop()


# --- clients that send no more ---------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_shuts_down_its_sending_side_gets_its_response(
    server: Server, version: str
) -> None:
    with Wire(server.url) as wire:
        wire.send(request().replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
        wire.say_no_more()
        answer = wire.answer()
        assert wire.ends() == b""

    assert answer.status == 200
    assert len(answer.body) == int(answer.headers["content-length"])


def test_a_long_run_outlasts_a_client_that_only_listens(start_server: StartServer) -> None:
    server = start_server("staged.py")
    with Wire(server.url) as wire:
        wire.send(request())
        wire.say_no_more()
        (folder,) = wait_for_run(server)
        # Some letters of the answer are there already: they tell whether anyone is.
        eventually(lambda: len(wire.peek()) >= 3)
        assert b"HTTP/1.1 200 OK".startswith(wire.peek())
        assert server.http.get("/jobs").json()["jobs"][0]["state"] == "running"
        let_end(folder)
        assert wire.answer().status == 200
        assert wire.ends() == b""


def test_pipelined_requests_are_all_answered_even_if_no_more_follow(server: Server) -> None:
    with Wire(server.url) as wire:
        wire.send(request() + request(method="GET", target="/api/v1/about", body=b"") + request())
        wire.say_no_more()
        assert wire.answer().status == 200
        assert wire.answer("GET").json()["name"] == "pfms"
        assert wire.answer().status == 200
        assert wire.ends() == b""


@pytest.mark.parametrize("cut", [20, 200, -1])
def test_the_refusal_of_a_request_that_ends_in_the_middle_says_so(server: Server, cut: int) -> None:
    before = jobs_made(server)
    with Wire(server.url) as wire:
        wire.send(request()[:cut])
        wire.say_no_more()
        problem = is_problem(wire.answer(), 400, "invalid-parameter")
        assert wire.ends() == b""

    assert "ended" in problem["detail"]
    assert jobs_made(server) == before


def reset(wire: Wire) -> None:
    wire.hang_up(reset=True)


def half_close_first(wire: Wire) -> None:
    wire.say_no_more()
    wire.hang_up()


@pytest.mark.parametrize("leave", [Wire.hang_up, reset, half_close_first])
def test_a_client_that_is_really_gone_cancels_its_run(
    start_server: StartServer, leave: Callable[[Wire], None]
) -> None:
    server = start_server("staged.py")
    with Wire(server.url) as wire:
        wire.send(request())
        wait_for_run(server)
        leave(wire)
        # Well before the kernel would report a closed socket by itself (a minute).
        eventually(lambda: server.http.get("/jobs").json()["jobs"][0]["state"] == "cancelled", 10)


def test_a_half_closed_client_that_leaves_cancels_its_run(
    start_server: StartServer,
) -> None:
    server = start_server("staged.py")
    with Wire(server.url) as wire:
        wire.send(request())
        wire.say_no_more()
        wait_for_run(server)
        eventually(lambda: len(wire.peek()) >= 2)
        assert server.http.get("/jobs").json()["jobs"][0]["state"] == "running"
        wire.hang_up()
        eventually(lambda: server.http.get("/jobs").json()["jobs"][0]["state"] == "cancelled", 10)


def wait_for_run(server: Server) -> list[Path]:
    eventually(
        lambda: [j for j in server.http.get("/jobs").json()["jobs"] if j["state"] == "running"]
    )
    return server.job_folders()


def let_end(folder: Path) -> None:
    for name in ("infer", "save", "end"):
        (folder / name).touch()


# --- silence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [INFER, MODELPTH])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_silence_in_the_middle_of_a_body_ends_it(
    hasty_server: Server, path: str, chunked: bool
) -> None:
    before = files_of(hasty_server)
    whole = request(
        target=f"/api/v1{path}?modelID=demo", chunked=chunked, body=part(bytes(3_000_000))
    )
    with Wire(hasty_server.url) as wire:
        wire.send(whole[:2_000_000])
        answer = wire.answer()
        assert files_of(hasty_server) == before  # at once
        assert wire.ends() == b""

    problem = is_problem(answer, 408, "request-timeout")
    assert "1 second" in problem["detail"]
    assert answer.headers["connection"] == "close"


def drip(wire: Wire, piece: bytes) -> None:
    """Send a little now and then, until the server has an answer or hangs up."""

    def sent() -> bool:
        try:
            wire.send(piece)
        except OSError:
            return True
        return bool(wire.peek())

    eventually(sent)


@pytest.mark.parametrize("path", [INFER, MODELPTH])
def test_a_body_that_trickles_ends_it(hasty_server: Server, path: str) -> None:
    before = files_of(hasty_server)
    with Wire(hasty_server.url) as wire:
        wire.head(
            "POST", f"/api/v1{path}?modelID=demo", Content_Type=FORM, Content_Length=3_000_000
        )
        wire.send(part(b"")[:-2])
        drip(wire, b"x")
        answer = wire.answer()
        assert files_of(hasty_server) == before

    problem = is_problem(answer, 408, "request-timeout")
    assert "Only" in problem["detail"]


def test_a_head_that_trickles_ends_the_connection(hasty_server: Server) -> None:
    with Wire(hasty_server.url) as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        drip(wire, b"x")
        is_problem(wire.answer(), 408, "request-timeout")


def test_the_rest_of_a_refused_body_may_not_trickle(hasty_server: Server) -> None:
    with Wire(hasty_server.url) as wire:
        wire.head(
            "POST", f"/api/v1{INFER}?modelID=none", Content_Type=FORM, Content_Length=1_000_000
        )
        is_problem(wire.answer(), 404, "model-not-found")

        def cut_off() -> bool:
            try:
                wire.send(b"x")
            except OSError:
                return True
            return False

        eventually(cut_off)


def test_silence_where_a_body_should_begin_ends_the_request(hasty_server: Server) -> None:
    with Wire(hasty_server.url) as wire:
        wire.head("POST", TARGET, Content_Type=FORM, Content_Length=1000)
        is_problem(wire.answer(), 408, "request-timeout")


def test_a_head_that_arrives_too_slowly_ends_the_connection(hasty_server: Server) -> None:
    with Wire(hasty_server.url) as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost:")
        is_problem(wire.answer(), 408, "request-timeout")
        assert wire.ends() == b""
    with Wire(hasty_server.url) as wire:
        wire.send(request(method="GET", target="/api/v1/about", body=b""))
        assert wire.answer("GET").status == 200
        wire.send(b"GET / HTTP/1.1\r\nX: y\r\nHo")
        is_problem(wire.answer(), 408, "request-timeout")


def test_a_client_that_never_says_a_word_is_not_kept(hasty_server: Server) -> None:
    with Wire(hasty_server.url) as wire:
        assert wire.ends() == b""


def test_line_breaks_after_an_answer_keep_no_connection(hasty_server: Server) -> None:
    with Wire(hasty_server.url) as wire:
        wire.head("GET", "/api/v1/about")
        assert wire.answer("GET").status == 200
        wire.send(b"\r\n")
        assert wire.ends() == b""


def test_no_timer_is_left_of_a_connection_that_was_reset(hasty_server: Server) -> None:
    leaving, staying = Wire(hasty_server.url), Wire(hasty_server.url)
    for wire in (leaving, staying):
        wire.head("GET", "/api/v1/about")
        assert wire.answer("GET").status == 200
    leaving.hang_up(reset=True)
    with staying:
        assert staying.ends() == b""  # as long as a connection without requests is kept
    assert "Exception in callback" not in hasty_server.log.read_text()


def test_a_body_that_was_refused_is_not_waited_for(hasty_server: Server) -> None:
    with Wire(hasty_server.url) as wire:
        wire.head(
            "POST", f"/api/v1{INFER}?modelID=none", Content_Type=FORM, Content_Length=1_000_000
        )
        is_problem(wire.answer(), 404, "model-not-found")
        wire.send(bytes(1000))
        assert wire.ends() == b""


def test_a_call_that_waits_for_its_response_is_not_cut_off(hasty_server: Server) -> None:
    with Wire(hasty_server.url) as wire:
        wire.send(request())
        (folder,) = wait_for_run(hasty_server)
        with Wire(hasty_server.url) as other:
            assert other.ends() == b""  # more than its second is over
        let_end(folder)
        assert wire.answer().status == 200


def test_the_kernel_checks_whether_a_silent_client_is_still_there(server: Server) -> None:
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("the kernel does not show its timers")
    with Wire(server.url) as wire:
        wire.head("POST", TARGET, Content_Type=FORM, Content_Length=1000)
        ours, theirs = f":{wire.port:04X}", f":{wire.server_port:04X}"

        def timer() -> str:
            rows = [line.split() for line in table.read_text().splitlines()]
            return next(r[5] for r in rows if r[1].endswith(theirs) and r[2].endswith(ours))

        eventually(lambda: timer().startswith("02:"))  # the keep-alive timer
