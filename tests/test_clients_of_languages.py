"""Programs in other languages, each with the defaults of its HTTP library, against a real server.

The examples of examples/clients are what users copy. The programs of tests/clients are further ways
to call: the libraries beside those of the examples, and forms made by hand.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, Server, image_of, nifti_bytes, seed_model, spleen_of, start

FOLDERS = [ROOT / "examples" / "clients", ROOT / "tests" / "clients"]
WEIGHTS = ROOT / "examples" / "demo_model.pth"
SECONDS = 100  # that a program may take on a busy machine


@dataclass(frozen=True)
class Client:
    """A program that calls pfms, and what has to be on the machine for it.

    `check` is a command that fails where `program` lacks a library. `curlrc` holds the defaults of
    the user's curl.
    """

    source: str
    program: str
    arguments: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    curlrc: str = ""
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.source


EXAMPLES = [
    Client("pfms_requests.py", sys.executable),
    Client("pfms_httpx.py", sys.executable),
    Client("pfms_urllib.py", sys.executable),
    Client("Pfms.java", "java"),
    Client("pfms.mjs", "node"),
    Client("pfms.go", "go", ("run",)),
    Client("pfms.rb", "ruby", ("-w",)),
    Client("pfms.php", "php", check=("-r", "exit(function_exists('curl_init') ? 0 : 1);")),
    Client("pfms.pl", "perl", check=("-MLWP::UserAgent", "-e1")),
    Client("pfms.sh", "sh", check=("-c", "command -v curl")),
]
CURL = EXAMPLES[-1]
# Each upload starts torch, which takes seconds: in the ordinary suite once for each language.
UPLOADERS = [
    pytest.param(
        client,
        marks=[pytest.mark.every] if client.source in ("pfms_httpx.py", "pfms_urllib.py") else [],
    )
    for client in EXAMPLES
]
OTHERS = [
    *(
        Client(CURL.source, CURL.program, check=CURL.check, curlrc=curlrc, name=f"curl, {curlrc}")
        for curlrc in ("http2", "http1.0", 'header = "Expect:"', 'header = "Expect: 100-continue"')
    ),
    Client("email_form.py", sys.executable),
    Client("node_http.mjs", "node"),
    Client("php_streams.php", "php"),
    Client("wget.sh", "sh", check=("-c", "command -v wget")),
]


@dataclass
class Caller:
    """Runs one client against one server."""

    command: list[str]
    environment: dict[str, str]

    def run(self, *words: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*self.command, *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def succeeds(self, *words: object) -> str:
        """Run it; what it says. It has to end well, without a warning of its language."""
        run = self.run(*words)
        assert run.returncode == 0, run.stderr + run.stdout
        assert not run.stderr
        return run.stdout


def started(client: Client, folder: Path) -> Caller:
    """The client, ready to be run."""
    missing = shutil.which(client.program) is None
    if not missing and client.check:
        probe = subprocess.run([client.program, *client.check], capture_output=True)
        missing = probe.returncode != 0
    if missing:
        reason = (
            f"{client.program} for {client.source} is not on this machine (.ci/run installs it)"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)  # there nothing is left out silently
        pytest.skip(reason)
    source = next(f / client.source for f in FOLDERS if (f / client.source).exists())
    (folder / ".curlrc").write_text(client.curlrc)
    return Caller(
        [client.program, *client.arguments, str(source)], {**os.environ, "CURL_HOME": str(folder)}
    )


@pytest.fixture(params=[*EXAMPLES, *OTHERS], ids=str)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Caller:
    """Every client in turn."""
    return started(request.param, tmp_path)


@pytest.fixture(params=EXAMPLES, ids=str)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Caller:
    """Every example in turn."""
    return started(request.param, tmp_path)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A CT to send."""
    path = tmp_path / "a CT.nii.gz"
    path.write_bytes(nifti_bytes())
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that clients leave their weights on."""
    one = start(tmp_path_factory.mktemp("store") / "workspace")
    yield one
    one.stop()


@pytest.fixture(scope="module")
def failing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose plugin always fails."""
    workspace = tmp_path_factory.mktemp("failing") / "workspace"
    seed_model(workspace)
    one = start(workspace, "exit3.py")
    yield one
    one.stop()


def is_segmentation_of(volume: bytes, output: Path) -> bool:
    labels = np.asanyarray(image_of(output.read_bytes()).dataobj)
    return np.array_equal(labels, spleen_of(volume))


def test_a_client_waits_and_gets_the_labels(caller: Caller, server: Server, tmp_path: Path) -> None:
    volume, output = tmp_path / "a CT.nii", tmp_path / "spleen.nii.gz"
    content = nifti_bytes((96, 96, 96), gzipped=False)
    assert len(content) > 1 << 20, "from there on curl asks first whether it may send the body"
    volume.write_bytes(content)

    caller.succeeds(server.url, "infer", "demo", volume, output)

    assert is_segmentation_of(gzip.compress(content, 1), output)


def test_a_client_submits_polls_and_fetches_and_the_same_key_finds_the_same_job(
    example: Caller, server: Server, volume: Path, tmp_path: Path
) -> None:
    key = str(uuid.uuid4())
    outputs = [tmp_path / "first.nii.gz", tmp_path / "second.nii.gz"]

    said = [example.succeeds(server.url, "submit", "demo", volume, path, key) for path in outputs]

    assert said[0] == said[1]
    job = server.job(said[0].removeprefix("job ").strip())
    assert job["state"] == "succeeded"
    assert is_segmentation_of(volume.read_bytes(), outputs[0])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_a_client_that_is_still_sending_says_what_is_wrong_and_what_to_do(
    caller: Caller, server: Server, tmp_path: Path
) -> None:
    problem = server.infer(model="unknown").json()

    run = caller.run(server.url, "infer", "unknown", WEIGHTS, tmp_path / "spleen.nii.gz")

    assert run.returncode == 1
    assert problem["detail"] in run.stderr
    assert problem["remedy"] in run.stderr
    assert not (tmp_path / "spleen.nii.gz").exists()


def test_a_polling_client_learns_that_its_run_failed(
    example: Caller, failing_server: Server, volume: Path, tmp_path: Path
) -> None:
    output = tmp_path / "spleen.nii.gz"

    run = example.run(failing_server.url, "submit", "demo", volume, output, uuid.uuid4().hex)

    assert run.returncode == 1
    assert "plugin-failed" in run.stderr
    assert not output.exists()


def test_without_arguments_an_example_says_how_it_is_used(example: Caller) -> None:
    run = example.run()

    assert run.returncode != 0
    assert "SERVER submit MODEL VOLUME OUTPUT KEY" in run.stderr


@pytest.mark.real
@pytest.mark.parametrize("example", UPLOADERS, indirect=True, ids=str)
def test_a_client_uploads_weights(example: Caller, store: Server) -> None:
    model = f"of-{uuid.uuid4()}"

    said = example.succeeds(store.url, "upload", model, WEIGHTS)

    stored = store.http.get(f"/spleenseg/modelpth/{model}").json()
    assert stored["upload_sha256"] == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert stored["sha256"] in said
