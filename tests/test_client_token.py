"""The token of the command line: where it is found, who gets it, and what a refusal says."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from pfms.client import BearerToken, Client, PfmsProblem
from tests.command import pfms
from tests.conftest import nifti_bytes
from tests.small_server import Answers, small_server

LIST = ("models", "list")
BASIC = httpx.BasicAuth("me", "of-netrc")


@dataclass
class Asked:
    """A small server, and the credentials of each request to it."""

    url: str = ""
    credentials: list[str | None] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    status: int = 200
    moved_to: str = ""

    def answer(self, request: Answers) -> None:
        self.credentials.append(request.headers["Authorization"])
        self.methods.append(request.command)
        if self.moved_to:
            request.send_response(307)
            request.send_header("Location", f"{self.moved_to}{request.path}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if request.command == "POST":
            request.skip_body()
        refusal = {"code": "no", "detail": "It is refused.", "remedy": "Ask."}
        request.say(
            json.dumps({"models": []} if self.status == 200 else refusal).encode(), self.status
        )


@pytest.fixture
def asked() -> Iterator[Asked]:
    one = Asked()
    with small_server(one.answer) as one.url:
        yield one


@pytest.fixture
def other() -> Iterator[Asked]:
    one = Asked()
    with small_server(one.answer) as one.url:
        yield one


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a token in every place, of which only its owner can read."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / ".config" / "pfms").mkdir(parents=True)
    files = {
        "named": "of-file\n",
        ".config/pfms/token": "of-config\n",
        ".netrc": "machine 127.0.0.1 login me password of-netrc\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    return tmp_path


def basic(auth: httpx.BasicAuth) -> str:
    sent = next(auth.auth_flow(httpx.Request("GET", "http://localhost")))
    return sent.headers["Authorization"]


def test_the_first_place_that_has_a_token_is_taken(home: Path, asked: Asked) -> None:
    pfms(*LIST, "--token-file", "named", cwd=home, server=asked.url, token="of-env")
    pfms(*LIST, cwd=home, server=asked.url, token="of-env")
    pfms(*LIST, cwd=home, server=asked.url)
    (home / ".config" / "pfms" / "token").unlink()
    pfms(*LIST, cwd=home, server=asked.url, token="")
    (home / ".netrc").unlink()
    pfms(*LIST, cwd=home, server=asked.url)

    tokens = [f"Bearer of-{place}" for place in ("file", "env", "config")]
    assert asked.credentials == [*tokens, basic(BASIC), None]


def test_the_configuration_folder_may_be_elsewhere(
    home: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "elsewhere"))
    (home / ".config").rename(home / "elsewhere")
    pfms(*LIST, cwd=home, server=asked.url)
    assert asked.credentials == ["Bearer of-config"]


@pytest.mark.parametrize(
    "entry", ["machine localhost login me password x\n", "default login me password x\n"]
)
def test_netrc_is_for_the_host_that_it_names(home: Path, asked: Asked, entry: str) -> None:
    (home / ".config" / "pfms" / "token").unlink()
    (home / ".netrc").write_text(entry)
    pfms(*LIST, cwd=home, server=asked.url)
    assert asked.credentials == [None]


def test_a_token_that_others_can_read_is_refused_or_warned_of(home: Path, asked: Asked) -> None:
    for name in ("named", ".config/pfms/token", ".netrc"):
        (home / name).chmod(0o644)
    named = pfms(*LIST, "--token-file", "named", cwd=home, server=asked.url)
    assert "warning: other users can read named" in named.stderr
    refused = pfms(*LIST, cwd=home, server=asked.url, code=2)
    assert "chmod 600" in refused.stderr
    (home / ".config" / "pfms" / "token").unlink()
    without = pfms(*LIST, cwd=home, server=asked.url)
    assert "warning: ~/.netrc is not used" in without.stderr
    assert asked.credentials == ["Bearer of-file", None]


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff\xfe", "schl\xfcssel".encode()])
def test_what_is_no_token_is_not_sent(home: Path, asked: Asked, content: bytes) -> None:
    (home / "named").write_bytes(content)
    done = pfms(*LIST, "--token-file", "named", cwd=home, server=asked.url, code=2)
    assert "named holds no token" in done.stderr
    assert asked.credentials == []


def test_a_file_that_is_not_there_is_named(home: Path, asked: Asked) -> None:
    done = pfms(*LIST, "--token-file", "none", cwd=home, server=asked.url, code=2)
    assert "none cannot be read" in done.stderr


def test_a_token_is_no_argument(home: Path, asked: Asked) -> None:
    pfms(*LIST, "--token", "secret", cwd=home, server=asked.url, code=2)
    assert asked.credentials == []


def test_nothing_follows_a_redirect_to_another_server(
    home: Path, asked: Asked, other: Asked
) -> None:
    asked.moved_to = other.url
    done = pfms(*LIST, cwd=home, server=asked.url, code=2)
    assert "307" in done.stderr
    with (
        Client(asked.url, auth=BearerToken("secret")) as client,
        pytest.raises(PfmsProblem),
    ):
        client.infer(home / "named", "demo", home / "out")
    assert other.credentials == []


def test_a_refusal_says_what_to_do_about_the_token(home: Path, asked: Asked) -> None:
    asked.status = 401
    done = pfms(*LIST, cwd=home, server=asked.url, code=2, token="secret")
    assert "The token that was sent is from PFMS_TOKEN." in done.stderr
    assert "secret" not in done.stderr
    (home / ".config" / "pfms" / "token").unlink()
    (home / ".netrc").unlink()
    done = pfms(*LIST, cwd=home, server=asked.url, code=2)
    assert "--token-file" in done.stderr
    asked.status = 403
    done = pfms(*LIST, cwd=home, server=asked.url, code=2, token="secret")
    assert "Ask. The token that was sent is from PFMS_TOKEN." in done.stderr


def test_a_volume_is_not_sent_where_its_sender_is_refused(home: Path, asked: Asked) -> None:
    asked.status = 401
    (home / "ct.nii.gz").write_bytes(nifti_bytes())
    pfms("infer", "ct.nii.gz", "--model", "demo", cwd=home, server=asked.url, code=2)
    assert asked.methods == ["GET"]


def test_every_command_sends_it(home: Path, asked: Asked) -> None:
    asked.status = 403
    (home / "ct.nii.gz").write_bytes(nifti_bytes())
    lines = [("infer", "ct.nii.gz", "--model", "demo"), ("models", "add", "named", "--id", "x")]
    lines += [("models", name, "x") for name in ("show", "rm")]
    lines += [("jobs", name, "x") for name in ("show", "log", "cancel", "rm")]
    for line in (*lines, ("jobs", "list")):
        pfms(*line, "--token-file", "named", cwd=home, server=asked.url, code=2)
    assert set(asked.credentials) == {"Bearer of-file"}
    assert len(asked.credentials) > len(lines)
