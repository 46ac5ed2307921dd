"""Who a call comes from: what proxies say of it is believed of those in the settings alone."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pfms.errors import StartError
from pfms.settings import load_settings
from tests.conftest import Server, StartServer, eventually
from tests.test_proxy import CONFIG, NGINX, answers, free_port, location

PEER, OTHER, CLIENT = "127.0.0.1", "127.0.0.3", "127.0.0.2"  # all of them this machine
SPOOFED = "203.0.113.9"


def caller(server: Server, url: str, local: str, headers: Mapping[str, str]) -> str:
    """Call from a local address; who the server's log says has called."""
    transport = httpx.HTTPTransport(local_address=local)
    with httpx.Client(transport=transport, trust_env=False) as http:
        path = f"/api/v1/call-{len(server.log.read_text())}"  # the log has no queries
        assert http.get(f"{url}{path}", headers=headers).status_code == 404
    eventually(lambda: path in server.log.read_text())
    [line] = [line for line in server.log.read_text().splitlines() if path in line]
    [found] = [name for name in (PEER, OTHER, CLIENT, SPOOFED, "2001:db8::1") if name in line]
    return found


@pytest.mark.parametrize(
    ("trusted", "local", "forwarded", "seen"),
    [
        ("", PEER, SPOOFED, PEER),
        (OTHER, PEER, SPOOFED, PEER),
        (PEER, OTHER, SPOOFED, OTHER),
        (PEER, PEER, None, PEER),
        (PEER, PEER, CLIENT, CLIENT),
        (PEER, PEER, "2001:db8::1", "2001:db8::1"),
        (PEER, PEER, f"{SPOOFED}, {CLIENT}", CLIENT),
        (f"10.0.0.0/8, {PEER}", PEER, f"{SPOOFED}, {CLIENT}, 10.1.2.3", CLIENT),
        ("127.0.0.0/31", PEER, f"{SPOOFED}, {CLIENT}", CLIENT),
    ],
)
def test_the_last_address_that_no_trusted_proxy_has_is_the_client(
    start_server: StartServer, trusted: str, local: str, forwarded: str | None, seen: str
) -> None:
    server = start_server(trusted_proxies=trusted)
    headers = {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"} if forwarded else {}
    assert caller(server, server.url, local, headers) == seen


def test_the_environment_of_uvicorn_makes_no_proxy_trusted(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    for trusted in ("", OTHER):
        server = start_server(trusted_proxies=trusted)
        assert caller(server, server.url, PEER, {"X-Forwarded-For": SPOOFED}) == PEER
        server.stop()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (nginx-light)")
def test_behind_nginx_the_client_is_the_one_that_called_nginx(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(trusted_proxies=PEER, root_path="/pfms")
    with nginx(server, tmp_path) as url:
        assert caller(server, url, CLIENT, {"X-Forwarded-For": SPOOFED}) == CLIENT
        assert caller(server, url, OTHER, {}) == OTHER


@contextmanager
def nginx(server: Server, folder: Path) -> Iterator[str]:
    """A proxy with the configuration of the documentation; the URL there."""
    port = free_port()
    config = folder / "nginx.conf"
    shown = location("/pfms", server.url, strips=False)
    config.write_text(CONFIG.format(folder=folder, port=port, location=shown))
    assert NGINX
    process = subprocess.Popen([NGINX, "-e", folder / "error.log", "-c", config, "-p", folder])
    try:
        eventually(lambda: answers(port))
        yield f"http://127.0.0.1:{port}/pfms"
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize(
    "text", ["*", "proxy.example", "10.0.0.1/8", "10.0.0.0/33", "127.0.0.1:80"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(StartError, match="PFMS_TRUSTED_PROXIES"):
        load_settings(trusted_proxies=text)
