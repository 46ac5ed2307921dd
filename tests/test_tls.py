"""TLS on a real port: what is accepted, and a certificate that is replaced as the server runs."""

import json
import os
import ssl
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import trustme

from pfms.api.tls import Certificate
from pfms.client.client import Client
from pfms.client.problems import Unreachable
from pfms.errors import StartError
from pfms.settings import load_settings
from tests.command import pfms
from tests.conftest import Server, StartServer, eventually, nifti_bytes
from tests.refused import TARGET, is_problem, request
from tests.test_server import let_end, log_of, states
from tests.wire import FORM, Wire, form, part


@dataclass
class Pair:
    """The two files of a server, and what a client of it trusts."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        return self.folder / "server.key"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def settings(self) -> dict[str, Path]:
        return {"tls_certificate": self.certificate, "tls_key": self.key}

    def renew(self, ends: datetime | None = None) -> trustme.LeafCert:
        """A new pair, of a new authority: each file is renamed over the old one."""
        authority = trustme.CA()
        made = authority.issue_cert("localhost", "127.0.0.1", not_after=ends)
        replace(self.ca, authority.cert_pem.bytes())
        replace(self.certificate, made.cert_chain_pems[0].bytes())
        replace(self.key, made.private_key_pem.bytes())
        return made

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)


def replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    made = Pair(tmp_path)
    made.renew()
    return made


@pytest.fixture
def secure(start_server: StartServer, pair: Pair) -> Callable[..., Server]:
    """Start a server with the pair; its client trusts the pair's authority."""

    def begin(plugin: str = "ok.py") -> Server:
        server = start_server(plugin, **pair.settings)
        assert server.url.startswith("https://")
        server.http.close()
        server.http = httpx.Client(
            base_url=f"{server.url}/api/v1", timeout=60, verify=pair.trusting()
        )
        return server

    return begin


def accepted(server: Server, tls: ssl.SSLContext) -> bool:
    """Whether a new connection is made."""
    try:
        with Wire(server.url, tls=tls):
            return True
    except ssl.SSLError:
        return False


# --- calls -------------------------------------------------------------------------------------


def test_a_volume_is_sent_and_segmented(
    secure: Callable[..., Server], pair: Pair, tmp_path: Path
) -> None:
    server = secure()
    volume, target = tmp_path / "ct.nii.gz", tmp_path / "out.nii.gz"
    volume.write_bytes(nifti_bytes())

    with Client(server.url, ca=pair.ca) as client:
        job = client.infer(volume, "demo", target)

    assert job
    assert server.http.get(f"/jobs/{job['id']}/result").content == target.read_bytes()


def test_curl_works_with_the_certificate_of_the_authority(
    secure: Callable[..., Server], pair: Pair
) -> None:
    url = f"{secure().url}/api/v1/about"
    line = ["curl", "-sS", "--fail-with-body", "--cacert", str(pair.ca), url]
    told = subprocess.run(line, capture_output=True, check=True)
    assert json.loads(told.stdout)["name"] == "pfms"

    for options in ([], ["--http2"]):  # refused without it; HTTP/1.1 whatever curl offers
        line = ["curl", "-sS", *options, url]
        assert subprocess.run(line, capture_output=True, check=False).returncode == 60


@pytest.mark.parametrize(
    ("version", "status"), [("-tls1_1", 1), ("-tls1_2", 0), ("-tls1_3", 0)], ids=lambda v: str(v)
)
def test_tls_before_1_2_is_refused(
    secure: Callable[..., Server], version: str, status: int
) -> None:
    place = secure().url.removeprefix("https://")
    line = ["openssl", "s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-connect", place]
    done = subprocess.run(line, input=b"", capture_output=True, check=False, timeout=30)
    assert done.returncode == status, done.stderr


# --- the command line --------------------------------------------------------------------------


def test_a_command_trusts_the_file_it_is_given_or_what_the_system_trusts(
    secure: Callable[..., Server], pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = secure()
    line = ("models", "list", "--server", server.url)

    told = pfms(*line, cwd=tmp_path, code=3).stderr
    assert "certificate verify failed" in told
    assert "--ca FILE" in told
    assert "demo" in pfms(*line, "--ca", pair.ca, cwd=tmp_path).stdout
    assert "demo" in pfms(*line, cwd=tmp_path, ca=str(pair.ca)).stdout
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.ca))  # where OpenSSL looks for the system's
    assert "demo" in pfms(*line, cwd=tmp_path).stdout
    assert "--ca" in pfms(*line, "--ca", pair.key, cwd=tmp_path, code=2).stderr
    assert "no.pem" in pfms(*line, "--ca", "no.pem", cwd=tmp_path, code=2).stderr


def test_a_client_says_when_the_server_does_not_speak_tls(server: Server) -> None:
    url = server.url.replace("http:", "https:")
    with Client(url, retry_seconds=0) as client, pytest.raises(Unreachable) as told:
        client.models()
    assert "http://" in told.value.remedy


# --- a new certificate -------------------------------------------------------------------------


def test_a_new_certificate_is_shown_and_breaks_no_running_call(
    secure: Callable[..., Server], pair: Pair
) -> None:
    server = secure("staged.py")
    job_id = server.submit()
    eventually(lambda: "Device" in log_of(server, job_id))
    with server.http.stream("GET", f"/jobs/{job_id}/events") as stream:
        lines = stream.iter_lines()
        assert next(lines)
        old = pair.trusting()
        pair.renew()
        new = pair.trusting()
        eventually(lambda: accepted(server, new))

        assert not accepted(server, old)
        let_end(server, job_id)
        said = "\n".join(lines)
    assert '"succeeded"' in said
    assert "a new TLS certificate is in use" in server.log.read_text()


def test_a_pair_that_cannot_be_used_is_logged_and_the_old_one_stays(
    secure: Callable[..., Server], pair: Pair
) -> None:
    server = secure()
    old = pair.trusting()
    key = pair.key.read_bytes()
    pair.renew()
    new, newer = pair.trusting(), pair.key.read_bytes()
    replace(pair.key, key)
    eventually(lambda: "certificate is not used" in server.log.read_text())
    assert accepted(server, old)
    replace(pair.key, newer)
    eventually(lambda: accepted(server, new))
    assert server.log.read_text().count("certificate is not used") == 1


# --- a start -----------------------------------------------------------------------------------


def make_other_key(pair: Pair) -> None:
    key = pair.key.read_bytes()
    pair.renew()
    pair.key.write_bytes(key)


def encrypt_key(pair: Pair) -> None:
    line = ["openssl", "pkey", "-in", str(pair.key), "-aes256", "-passout", "pass:secret"]
    pair.key.write_bytes(subprocess.run(line, capture_output=True, check=True).stdout)


UNUSABLE: dict[str, tuple[Callable[[Pair], object], str]] = {
    "missing certificate": (lambda pair: pair.certificate.unlink(), "server.pem cannot be read"),
    "missing key": (lambda pair: pair.key.unlink(), "server.key cannot be read"),
    "no PEM": (lambda pair: pair.certificate.write_bytes(b"\0\1"), "no certificate in PEM"),
    "no key": (lambda pair: pair.key.write_text("key"), "cannot be used for TLS"),
    "swapped": (
        lambda pair: pair.certificate.replace(pair.key) and pair.ca.replace(pair.certificate),
        "cannot be used for TLS",
    ),
    "another's key": (make_other_key, "server.key is not that of the certificate"),
    "encrypted key": (encrypt_key, "server.key is encrypted"),
    "ended": (lambda pair: pair.renew(datetime.now(UTC) - timedelta(days=1)), "ended on"),
}


@pytest.mark.parametrize(("spoil", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_pair_that_cannot_be_used_prevents_the_start(
    pair: Pair, spoil: Callable[[Pair], object], words: str
) -> None:
    spoil(pair)
    with pytest.raises(StartError) as told:
        Certificate.of(load_settings(**pair.settings))
    assert words in told.value.line


@pytest.mark.parametrize("named", ["tls_certificate", "tls_key"])
def test_one_file_alone_prevents_the_start(pair: Pair, tmp_path: Path, named: str) -> None:
    other = ({"tls_certificate", "tls_key"} - {named}).pop()
    settings = {named: str(pair.settings[named]), "workspace": str(tmp_path / "w"), "port": "0"}
    settings["plugin_command"] = str(Path(__file__).parent / "plugins" / "ok.py")
    done = pfms("serve", cwd=tmp_path, code=2, devices="cpu", executor="fresh", **settings)
    assert f"PFMS_{other.upper()} is not set" in done.stderr.splitlines()[-1]


def test_a_certificate_that_ends_soon_is_warned_of(start_server: StartServer, pair: Pair) -> None:
    pair.renew(datetime.now(UTC) + timedelta(days=3))
    server = start_server(**pair.settings)
    assert "the TLS certificate ends on" in server.log.read_text()
    pair.renew()
    eventually(lambda: accepted(server, pair.trusting()))
    assert server.log.read_text().count("the TLS certificate ends on") == 1


# --- connections -------------------------------------------------------------------------------


@pytest.mark.parametrize("closes", [True, False])
def test_a_client_that_sends_on_still_reads_its_refusal(
    secure: Callable[..., Server], pair: Pair, closes: bool
) -> None:
    """TLS cannot close its sending side: closed whole, the answer would be lost."""
    server, length = secure(), 20_000_000
    with Wire(server.url, tls=pair.trusting()) as wire:
        headers = {"Connection": "close"} if closes else {}
        wire.head(
            "POST",
            TARGET.replace("demo", "none"),
            Content_Type=FORM,
            Content_Length=length,
            **headers,
        )
        for _ in range(length // 1_000_000):
            wire.send(bytes(1_000_000))
        is_problem(wire.answer(), 404, "model-not-found")


@pytest.mark.parametrize("politely", [True, False], ids=["close_notify", "FIN"])
def test_a_client_that_leaves_its_call_cancels_the_run(
    secure: Callable[..., Server], pair: Pair, politely: bool
) -> None:
    server = secure("staged.py")
    body = form(part(nifti_bytes()))
    with Wire(server.url, tls=pair.trusting()) as wire:
        wire.send(request(body=body))
        eventually(lambda: states(server))
        (job_id,) = states(server)
        eventually(lambda: "Device" in log_of(server, job_id))
        if politely:
            wire.say_goodbye()
        else:
            wire.say_no_more()
    assert server.ended(job_id)["state"] == "cancelled"
    said = server.log.read_text()
    assert "Traceback" not in said
    assert "no effect" not in said


def test_a_client_that_stops_in_the_middle_leaves_nothing(
    secure: Callable[..., Server], pair: Pair
) -> None:
    server = secure()
    with Wire(server.url, tls=pair.trusting()) as wire:
        wire.send(request(body=form(part(nifti_bytes())))[:-20])
        eventually(server.uploads)
        with suppress(ssl.SSLError):  # a refusal comes first
            wire.say_goodbye()
    eventually(lambda: not server.uploads())
    assert states(server) == {}
    assert "Traceback" not in server.log.read_text()


def test_what_is_not_tls_is_hung_up_on_and_others_are_served(
    secure: Callable[..., Server],
) -> None:
    server = secure()
    with Wire(server.url) as wire:
        wire.send(b"GET /api/v1/about HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not wire.ends().startswith(b"HTTP/1.1 200")
    with Wire(server.url) as wire:
        wire.send(os.urandom(100))
        wire.ends()
    assert server.http.get("/about").status_code == 200
    assert "Traceback" not in server.log.read_text()
