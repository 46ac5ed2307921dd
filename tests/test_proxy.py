"""Behind a real nginx, under a prefix: everything that names a path names it with the prefix."""

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from pfms.client import Client, Update
from tests.conftest import ROOT, Server, eventually, image_of, nifti_bytes, seed_model, start
from tests.test_server import let_end
from tests.wire import FORM, Wire

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {location}
    }}
}}
"""

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (nginx-light)")


@dataclass
class Proxied:
    """A server, the URL under which a proxy serves it, and a client of that."""

    server: Server
    url: str
    prefix: str
    http: httpx.Client


def location(prefix: str, target: str, *, strips: bool) -> str:
    """The part of the configuration that docs/operating.md shows, for this prefix and server."""
    text = (ROOT / "docs" / "operating.md").read_text()
    shown = re.findall(r"```nginx\n(.+?)```", text, re.DOTALL)[0]
    assert "http://127.0.0.1:2024;" in shown
    target = f"{target}/" if strips else target
    shown = shown.replace("location /pfms/", f"location {prefix}/")
    return str(shown.replace("http://127.0.0.1:2024;", f"{target};"))


@pytest.fixture(
    scope="module",
    params=[("/pfms", False), ("/pfms", True), ("/api", True), ("/docs", True), ("/a/b", False)],
    ids=lambda param: f"{param[0][1:]} {'stripped' if param[1] else 'passed on'}",
)
def proxied(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    prefix, strips = request.param
    folder = tmp_path_factory.mktemp("proxied")
    seed_model(folder / "workspace")
    server = start(folder / "workspace", "staged.py", root_path=prefix, hostnames="clinic.example")
    port = free_port()
    config = folder / "nginx.conf"
    shown = location(prefix, server.url, strips=strips)
    config.write_text(CONFIG.format(folder=folder, port=port, location=shown))
    assert NGINX
    process = subprocess.Popen([NGINX, "-e", folder / "error.log", "-c", config, "-p", folder])
    url = f"http://127.0.0.1:{port}{prefix}"
    http = httpx.Client(base_url=url, timeout=60)
    try:
        eventually(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "error.log").read_text()
        yield Proxied(server, url, prefix, http)
    finally:
        http.close()
        process.terminate()
        process.wait(10)
        server.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_everything_that_names_a_path_leads_back_through_the_proxy(proxied: Proxied) -> None:
    def follow(path: str) -> httpx.Response:
        assert path.startswith(f"{proxied.prefix}/"), path
        answer = proxied.http.get(str(httpx.URL(proxied.url).join(path)))
        assert answer.status_code == 200, path
        return answer

    accepted = proxied.http.post(
        "/api/v1/spleenseg/NIfTIinference/",
        params={"modelID": "demo"},
        files={"file": nifti_bytes()},
        headers={"Prefer": "respond-async"},
    )
    assert accepted.status_code == 202, accepted.text
    assert follow(accepted.headers["Location"]).json()["id"] == accepted.json()["id"]
    job = f"/api/v1/jobs/{accepted.json()['id']}"
    let_end(proxied.server, accepted.json()["id"])
    eventually(lambda: proxied.http.get(job).json()["ended_at"])
    rerun = proxied.http.post(f"{job}/rerun")
    let_end(proxied.server, follow(rerun.headers["Location"]).json()["id"])

    for path in ("/nothing", "/health/nothing", f"{job}x"):
        problem = proxied.http.get(path).json()
        assert problem["instance"] == proxied.prefix + path
        page = follow(problem["type"])
        assert f'id="{problem["type"].rpartition("#")[2]}"' in page.text

    for path in ("/docs", "/docs/", "/docs/errors", "/docs/try"):
        page = proxied.http.get(path)
        assert page.status_code == 200
        for link in re.findall(r'(?:src|href)="([^"#]+)"', page.text):
            follow(link)
    assert proxied.http.get("/manual").headers["location"] == f"{proxied.prefix}/manual/index.html"
    [openapi] = re.findall(r'"url": "([^"]+)"', proxied.http.get("/docs/try").text)
    assert follow(openapi).json()["servers"] == [{"url": proxied.prefix}]


def test_a_client_gets_its_result_and_sees_on_the_way_what_happens(
    proxied: Proxied, tmp_path: Path
) -> None:
    volume, target = tmp_path / "ct.nii.gz", tmp_path / "out.nii.gz"
    volume.write_bytes(nifti_bytes((64, 64, 40), gzipped=False))

    def saw(update: Update) -> None:
        # The run goes on only after an event of it has come through.
        if update.stage == "loading" and update.job:
            let_end(proxied.server, update.job)

    with Client(proxied.url) as client:
        client.infer(volume, "demo", target, on_update=saw)
        assert client.models() == ["demo"]

    assert image_of(target.read_bytes()).shape == (64, 64, 40)


def test_a_refusal_reaches_a_client_that_has_not_sent_its_body(proxied: Proxied) -> None:
    with Wire(proxied.url) as wire:
        path = f"{urlsplit(proxied.url).path}/api/v1/spleenseg/NIfTIinference?modelID=none"
        wire.head("POST", path, Content_Type=FORM, Content_Length=1_000_000)
        answer = wire.answer()

    assert (answer.status, answer.json()["code"]) == (404, "model-not-found")


def test_the_names_of_the_proxy_have_to_be_listed(proxied: Proxied) -> None:
    for host, status in (("clinic.example", 200), ("clinic.example:8443", 200), ("other", 421)):
        answer = proxied.http.get("/api/v1/about", headers={"Host": host})
        assert answer.status_code == status, host


def test_a_page_behind_the_proxy_may_change_something(proxied: Proxied) -> None:
    for origin, status in (("https://clinic.example", 404), ("https://evil.example", 403)):
        answer = proxied.http.delete(
            "/api/v1/spleenseg/modelpth/none", headers={"Host": "clinic.example", "Origin": origin}
        )
        assert answer.status_code == status, origin


def test_it_can_still_be_called_directly_with_and_without_the_prefix(proxied: Proxied) -> None:
    for prefix in ("", proxied.prefix):
        for path in ("/api/v1/about", "/api/v1/about/", "/health/ready", "/docs/errors"):
            url = f"{proxied.server.url}{prefix}{path}"
            assert proxied.http.get(url).status_code == 200, url
            assert proxied.http.head(url).status_code == 200, url
        refused = proxied.http.post(f"{proxied.server.url}{prefix}/api/v1/about")
        assert (refused.status_code, refused.headers["allow"]) == (405, "HEAD, GET")
