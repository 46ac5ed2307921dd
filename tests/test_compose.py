"""What Docker Compose gets: checked by its schema, and both containers started without Docker."""

import json
import os
import re
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import yaml  # type: ignore[import-untyped]

from pfms.client import BearerToken, Client, Update
from pfms.settings import Settings
from tests import image, tokens
from tests.conftest import PLUGINS, ROOT, Server, eventually, image_of, nifti_bytes, seed_model
from tests.test_image import A_RANDOM_USER, listening, needs_root, seconds
from tests.test_proxy import NGINX, answers, free_port
from tests.test_server import let_end
from tests.wire import FORM, Wire

COMPOSE = ROOT / "deploy" / "compose"
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)\}")
NGINX_USER = 101  # in the image of nginx
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (nginx-light)")
CLIENT, SPOOFED = "127.0.0.77", "203.0.113.9"


def example() -> dict[str, str]:
    lines = (COMPOSE / "example.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def services(**variables: str) -> dict[str, Any]:
    """The services of compose.yml, with these variables and otherwise those of example.env."""
    values = example() | variables
    text = VARIABLE.sub(lambda found: values[found[1]], (COMPOSE / "compose.yml").read_text())
    read: dict[str, Any] = yaml.safe_load(text)["services"]
    return read


@pytest.mark.parametrize(
    "file", [ROOT / "docker-compose.yml", COMPOSE / "compose.yml", COMPOSE / "gpu.yml"], ids=str
)
def test_a_compose_file_is_what_the_specification_allows(file: Path) -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    checked = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", file], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_example_has_every_variable_with_its_default() -> None:
    found = VARIABLE.findall((COMPOSE / "compose.yml").read_text())
    assert {name for name, _ in found} == {*example()} - {"COMPOSE_FILE"}
    for name, default in found:
        assert default in ("", example()[name]), name


def test_a_stop_gives_runs_the_time_to_end_and_callers_their_answers() -> None:
    pfms = services()["pfms"]
    drain = Settings.model_fields["drain_seconds"].default
    assert seconds(pfms["stop_grace_period"]) >= drain + 15
    assert pfms["depends_on"] == ["proxy"]  # so that Compose stops the proxy after it


def test_nginx_waits_longer_than_pfms() -> None:
    text = (COMPOSE / "nginx.conf").read_text()
    idle = Settings.model_fields["idle_seconds"].default
    for name in ("client_body_timeout", "proxy_send_timeout", "send_timeout"):
        assert int(re.findall(rf"\b{name} (\d+)s;", text)[0]) > idle, name
    assert Settings.model_fields["job_timeout_seconds"].default < 3600
    assert "proxy_read_timeout 1h;" in text


class _NameServer(socketserver.BaseRequestHandler):
    """Stands in for Docker's: knows that `pfms` is 127.0.0.1."""

    def handle(self) -> None:
        query, socket = self.request
        question, kind = query[12 : query.index(b"\0", 12) + 5], query[query.index(b"\0", 12) + 2]
        assert question.startswith(b"\4pfms\0")
        found = [b"\xc0\x0c\0\1\0\1\0\0\2\x58\0\4\x7f\0\0\1"] if kind == 1 else []  # A, not AAAA
        head = query[:2] + b"\x81\x80\0\1" + len(found).to_bytes(2) + bytes(4)
        socket.sendto(b"".join([head, question, *found]), self.client_address)


@contextmanager
def name_server() -> Iterator[int]:
    with socketserver.UDPServer(("127.0.0.1", 0), _NameServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def proxy(root: Path, pfms: int) -> Iterator[str]:
    """The proxy as its service has it, in front of the server at this port; the URL there."""
    service = services()["proxy"]
    port = free_port()
    with name_server() as names:
        config = (COMPOSE / "nginx.conf").read_text()
        for there, here in (
            ("listen 8443 ", f"listen 127.0.0.1:{port} "),
            ("127.0.0.11 ", f"127.0.0.1:{names} "),
            ("pfms:2024;", f"pfms:{pfms};"),
        ):
            assert config.count(there) == 1, there
            config = config.replace(there, here)
        container = image.Image(root, writable=tuple(service["tmpfs"]))
        container.prepare()
        (root / "nginx.conf").write_text(config)
        command = [*service["entrypoint"], "-c", "/nginx.conf"]
        tested = subprocess.run(
            container.argv([*command, "-t"], NGINX_USER),
            env=container.env,
            capture_output=True,
            text=True,
        )
        assert tested.returncode == 0, tested.stderr
        assert "[" not in tested.stderr, "a warning"
        log = root.with_suffix(".log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                container.argv(command, NGINX_USER), env=container.env, stderr=output
            )
        try:
            eventually(lambda: answers(port) or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield f"https://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


@dataclass
class Deployed:
    """Both containers: the server, the URL of the proxy, its authority and a token for it."""

    server: Server
    url: str
    ca: Path
    token: str


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    service = services(PROXY_SUBNET="127.0.0.0/28")["pfms"]
    folder = tmp_path_factory.mktemp("compose")
    root, outer = folder / "pfms", folder / "proxy"
    root.mkdir()
    made = image.Image(root)
    made.build()
    made.writable = ("/dev/shm", *service["tmpfs"])
    seed_model(root / "workspace")
    port = str(free_port())
    made.env |= service["environment"] | {
        "PFMS_PORT": port,
        "PFMS_MIN_FREE_BYTES": "0",
        "PFMS_DEVICES": "cpu",
        "PFMS_PLUGIN_COMMAND": str(PLUGINS / "staged.py"),
    }
    subprocess.run(["chmod", "-R", "g+rwX", root / "workspace"], check=True)
    # As the documentation says: by the command in a container of the service.
    add = ["pfms", "tokens", "add", "ward-3", "--scope", "infer", "--json"]
    added = made.run(add, A_RANDOM_USER)
    assert added.returncode == 0, added.stderr

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    certificates = outer / "certificates"
    certificates.mkdir(parents=True)
    issued.cert_chain_pems[0].write_to_path(certificates / "fullchain.pem")
    issued.private_key_pem.write_to_path(certificates / "privkey.pem")
    os.chown(certificates / "privkey.pem", NGINX_USER, NGINX_USER)
    (certificates / "privkey.pem").chmod(0o400)
    authority.cert_pem.write_to_path(folder / "ca.pem")

    argv = made.argv(made.command, A_RANDOM_USER)
    with (
        listening(argv, made.env, folder / "pfms.log", root / "workspace") as server,
        proxy(outer, int(port)) as url,
    ):
        yield Deployed(server, url, folder / "ca.pem", json.loads(added.stdout)["token"])


@needs_root
@needs_nginx
def test_a_volume_goes_through_the_proxy_and_its_events_come_back(
    deployed: Deployed, tmp_path: Path
) -> None:
    volume, target = tmp_path / "ct.nii.gz", tmp_path / "out.nii.gz"
    # More than the megabyte that nginx lets through by default.
    volume.write_bytes(nifti_bytes((128, 128, 40), gzipped=False))

    def saw(update: Update) -> None:
        # The run goes on only after an event of it has come through.
        if update.stage == "loading" and update.job:
            let_end(deployed.server, update.job)

    with Client(deployed.url, ca=deployed.ca, auth=BearerToken(deployed.token)) as client:
        client.infer(volume, "demo", target, on_update=saw)

    assert image_of(target.read_bytes()).shape == (128, 128, 40)


@needs_root
@needs_nginx
def test_a_refusal_comes_through_the_proxy_before_the_body_is_sent(deployed: Deployed) -> None:
    tls = ssl.create_default_context(cafile=deployed.ca)
    for token, status in (({}, 401), (tokens.bearer(deployed.token), 404)):
        with Wire(deployed.url, tls=tls) as wire:
            path = "/api/v1/spleenseg/NIfTIinference?modelID=none"
            wire.head("POST", path, Content_Type=FORM, Content_Length=1_000_000, **token)
            assert wire.answer().status == status


@needs_root
@needs_nginx
def test_pfms_sees_the_name_and_the_address_that_were_called(deployed: Deployed) -> None:
    tls = ssl.create_default_context(cafile=deployed.ca)
    transport = httpx.HTTPTransport(verify=tls, local_address=CLIENT)
    with httpx.Client(base_url=deployed.url, transport=transport) as http:
        for host, status in ((example()["PFMS_HOSTNAMES"], 404), ("other.example", 421)):
            headers = {"Host": host, "X-Forwarded-For": SPOOFED, **tokens.bearer(deployed.token)}
            answer = http.get(f"/api/v1/{host}", headers=headers)
            assert answer.status_code == status
            assert "max-age" in answer.headers["Strict-Transport-Security"]
    eventually(lambda: f"/api/v1/{host}" in deployed.server.log.read_text())
    log = deployed.server.log.read_text()
    assert CLIENT in log
    assert SPOOFED not in log
