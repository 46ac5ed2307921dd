"""How many connections there may be: over real ones, from several of loopback's addresses."""

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import filterfalse

import httpx
import psutil
import pytest

from pfms.api.door import Door
from pfms.errors import TooManyConnections
from tests.conftest import Server, StartServer, eventually, seed_model, start
from tests.refused import is_problem
from tests.wire import Wire

ELSEWHERE = "127.0.0.2"  # counts as an address like any other
PER_ADDRESS = 64


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    workspace = tmp_path_factory.mktemp("guarded-server") / "workspace"
    seed_model(workspace)
    one = start(workspace, max_connections_per_address=PER_ADDRESS)
    yield one
    one.stop()


@contextmanager
def slow(server: Server, count: int, source: str = "127.0.0.1") -> Iterator[list[Wire]]:
    """So many connections, each with a request that never becomes complete."""
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.url, source=source)) for _ in range(count)]
        for wire in wires:
            with suppress(ConnectionError):  # where it was closed already
                wire.send(b"GET /api/v1/about HTTP/1.1\r\nHost: localhost\r\nX: ")
        yield wires


def serves(server: Server, source: str) -> bool:
    with Wire(server.url, source=source) as wire:
        wire.head("GET", "/api/v1/about")
        try:
            return wire.answer("GET").status == 200
        except OSError:
            return False


def test_two_hundred_slow_connections_take_nothing_from_others(guarded_server: Server) -> None:
    with slow(guarded_server, 200, "127.0.0.4") as wires:
        # Those beyond the limit are told so, or only closed: there is a limit for the answers too.
        waiting = partial(filterfalse, Wire.is_answered_or_closed, wires)
        eventually(lambda: len(list(waiting())) == PER_ADDRESS)
        kept = list(waiting())
        assert guarded_server.infer().status_code == 200
        assert serves(guarded_server, "127.0.0.3")
        for wire in kept:  # they are slow, and not lost
            wire.send(b"y\r\n\r\n")
            assert wire.answer("GET").status == 200


def test_one_connection_too_many_is_told_so_and_closed(guarded_server: Server) -> None:
    with slow(guarded_server, PER_ADDRESS, ELSEWHERE) as wires:
        with Wire(guarded_server.url, source=ELSEWHERE) as wire:
            answer = wire.answer("GET")
            assert wire.ends() == b""
        assert answer.headers["connection"] == "close"
        assert int(answer.headers["retry-after"]) > 0
        assert "address" in is_problem(answer, 503, "too-many-connections")["detail"]
        wires[0].hang_up()
        eventually(lambda: serves(guarded_server, ELSEWHERE))


def test_this_machine_has_no_limit_of_its_own(guarded_server: Server) -> None:
    with slow(guarded_server, 200) as wires:
        for wire in wires:
            wire.send(b"y\r\n\r\n")
            assert wire.answer("GET").status == 200


def test_there_is_a_limit_for_all_together(start_server: StartServer) -> None:
    server = start_server(max_connections=10)
    with slow(server, 5), slow(server, 5, ELSEWHERE) as wires:
        with Wire(server.url) as wire:
            is_problem(wire.answer("GET"), 503, "too-many-connections")
        assert httpx.get(server.url).status_code == 503  # as a library reads it
        wires[0].hang_up()
        eventually(lambda: serves(server, "127.0.0.1"))


def test_more_connections_than_open_files_do_not_exhaust_them(start_server: StartServer) -> None:
    command = 'ulimit -n 700; exec "$0" "$@"'
    server = start_server(prefix=("bash", "-c", command), max_connections_per_address=1000)
    assert "at most 350 of PFMS_MAX_CONNECTIONS=2000" in server.log.read_text()
    with slow(server, 349, ELSEWHERE):
        assert server.infer().status_code == 200
        with slow(server, 500, ELSEWHERE):
            assert psutil.Process(server.process.pid).num_fds() < 700
    eventually(lambda: serves(server, ELSEWHERE))
    assert "Too many open files" not in server.log.read_text()


def test_a_start_raises_the_limit_of_open_files(start_server: StartServer) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2512:
        pytest.skip("the system allows no more")
    server = start_server(prefix=("bash", "-c", 'ulimit -Sn 256; exec "$0" "$@"'))
    assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0] == 2512
    assert "PFMS_MAX_CONNECTIONS" not in server.log.read_text()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8::1", "2001:db8::ffff:1"),
        ("fe80::1%eth0", "fe80::2%eth0"),
    ],
)
def test_what_counts_as_one_address(first: str, second: str) -> None:
    door = Door(10, 1)
    key = door.enter(first)
    with pytest.raises(TooManyConnections):
        door.enter(second)
    door.leave(key)
    door.enter(second)


def test_what_counts_as_another_address() -> None:
    door = Door(10, 1)
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "127.0.0.2"):
        door.enter(address)
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1", ""):  # without a limit
        door.enter(address)
    door.enter("127.0.0.1")
    with pytest.raises(TooManyConnections):  # but that of all
        door.enter("127.0.0.1")


def test_a_proxy_stands_for_many_callers() -> None:
    door = Door(10, 1, ("192.0.2.0/24", "2001:db8::/32"))
    for _ in range(2):
        for address in ("192.0.2.1", "2001:db8::1"):
            door.enter(address)
    door.enter("198.51.100.1")
    with pytest.raises(TooManyConnections):
        door.enter("198.51.100.1")
