"""Clients that read their response slowly or not at all: over raw connections."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import IncompleteRead
from pathlib import Path

import psutil
import pytest

from tests.conftest import Server, eventually, seed_model, start
from tests.wire import Wire

IDLE = 2  # seconds
WEIGHTS = os.urandom(20 << 20)  # more than the buffers of a connection hold


@pytest.fixture(scope="module")
def impatient_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that waits two seconds for a client to read; it has one job, which has ended."""
    workspace = tmp_path_factory.mktemp("impatient-server") / "workspace"
    seed_model(workspace, content=WEIGHTS)
    one = start(workspace, idle_seconds=IDLE)
    assert one.infer().status_code == 200
    yield one
    one.stop()


def ask_for_bundle(server: Server) -> Wire:
    """A connection with a small buffer, on which the request for 20 MB was sent."""
    wire = Wire(server.url, buffer=65536)
    wire.head("GET", f"/api/v1/jobs/{server.job_folders()[0].name}/bundle?voxels=true")
    return wire


def is_connected(server: Server, wire: Wire) -> bool:
    found = psutil.Process(server.process.pid).net_connections("tcp")
    return wire.port in [one.raddr.port for one in found if one.status == "ESTABLISHED"]


def open_bundles(server: Server) -> list[str]:
    links = [str(path) for path in Path(f"/proc/{server.process.pid}/fd").iterdir()]
    return [name for link in links if "/uploads/" in (name := os.path.realpath(link))]


def test_a_client_that_does_not_read_its_download_is_cut_off(impatient_server: Server) -> None:
    with ask_for_bundle(impatient_server) as wire:
        eventually(wire.peek)
        assert is_connected(impatient_server, wire)
        assert open_bundles(impatient_server)

        eventually(lambda: not is_connected(impatient_server, wire))
        eventually(lambda: not open_bundles(impatient_server))
        with pytest.raises((ConnectionError, IncompleteRead)):
            wire.answer("GET")
    assert "does not read on" in impatient_server.log.read_text()


def test_a_client_that_reads_slowly_gets_its_download(impatient_server: Server) -> None:
    with ask_for_bundle(impatient_server) as wire:
        began = time.monotonic()
        received = 0
        while time.monotonic() - began < 3 * IDLE:
            received += len(wire.read(20_000))
            time.sleep(0.05)
        assert received < len(WEIGHTS) // 2  # so the server still sends
        while received <= len(WEIGHTS):
            piece = wire.read(1 << 20)
            assert piece, received
            received += len(piece)


def test_a_client_that_asks_and_asks_but_does_not_read_is_cut_off(
    impatient_server: Server,
) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Wire(impatient_server.url, buffer=65536) as wire:
        with suppress(ConnectionError):  # where it is cut off already
            while wire.send_at_once(request * 100):
                pass
        eventually(lambda: not is_connected(impatient_server, wire))
