"""What the tests share: a real server on a real port, and models and volumes to send to it."""

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import nibabel as nib
import numpy as np
import pytest

from pfms.models.store import ModelStore
from tests.documented import check_documented

ROOT = Path(__file__).parent.parent
PLUGINS = Path(__file__).parent / "plugins"
SHARED_DATA = ROOT.parent / "shared" / "data"
LISTEN_SECONDS = 30
UPLOAD_LIMIT = 200_000  # bytes, for `strict_server`; twice as many when unpacked


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def nifti_bytes(
    shape: tuple[int, ...] = (24, 20, 24),
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0),
    *,
    gzipped: bool = True,
    dtype: Any = np.int16,
    seed: int = 0,
) -> bytes:
    """A small volume that is accepted as a CT: air, with soft tissue in the middle."""
    rng = np.random.default_rng(seed)
    voxels = np.full(shape, -1000, dtype=np.float64)
    middle = tuple(slice(n // 4, -(n // 4)) for n in shape)
    voxels[middle] = rng.normal(50, 10, voxels[middle].shape)
    image = nib.Nifti1Image(voxels.astype(dtype), np.diag([*spacing, 1.0]))
    raw: bytes = image.to_bytes()
    if not gzipped:
        return raw
    return gzip.compress(raw, 1, mtime=0)


def image_of(content: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


def spleen_of(volume: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """What the fake plugin takes for the spleen."""
    spleen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (
        np.asanyarray(image_of(volume).dataobj) > 0
    )
    return spleen


def eventually(holds: Callable[[], object], seconds: float = 30) -> None:
    """Wait until `holds()` is true; the limit only ensures that a broken test ends."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never became true"
        time.sleep(0.01)


async def until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Like `eventually`, but lets other tasks run on the loop."""
    with anyio.fail_after(seconds):
        while not holds():  # noqa: ASYNC110 (it depends on another process, which sets no event)
            await anyio.sleep(0.01)


def seed_model(workspace: Path, model_id: str = "demo", content: bytes = b"weights") -> None:
    """Put a model into a workspace without checking it: the fake plugins never open it."""
    store = ModelStore(workspace / "models", sys.executable)
    upload = workspace / f"{model_id}.upload"
    workspace.mkdir(parents=True, exist_ok=True)
    upload.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    store.place(
        model_id, upload, sha256=digest, upload_sha256=digest, size=len(content), source="test"
    )


@dataclass
class Server:
    """A running `pfms serve`, and a client for it."""

    workspace: Path
    process: subprocess.Popen[str]
    url: str
    log: Path
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(
            base_url=f"{self.url}/api/v1", timeout=60, event_hooks={"response": [check_documented]}
        )

    def infer(self, content: bytes | None = None, model: str = "demo", **request: Any) -> Any:
        """POST a volume to NIfTIinference; `request` goes to httpx (params are merged)."""
        params = {"modelID": model, **request.pop("params", {})}
        files = {"file": nifti_bytes() if content is None else content}
        return self.http.post("/spleenseg/NIfTIinference/", params=params, files=files, **request)

    def submit(self, content: bytes | None = None, model: str = "demo", **request: Any) -> str:
        """POST a volume without waiting; returns the job's ID."""
        headers = {"Prefer": "respond-async", **request.pop("headers", {})}
        answer = self.infer(content, model, headers=headers, **request)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job, once it has ended."""
        eventually(lambda: self.job(job_id)["ended_at"])
        return self.job(job_id)

    def job_folders(self) -> list[Path]:
        return sorted((self.workspace / "jobs").iterdir())

    def uploads(self) -> list[Path]:
        return sorted((self.workspace / "uploads").iterdir())

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and wait until it is gone; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(30)
        self.http.close()
        if self.process.stdout:
            self.process.stdout.close()
        return code


StartServer = Callable[..., Server]


def start(
    workspace: Path,
    plugin: str | Path = "ok.py",
    program: Sequence[str] = ("-m", "pfms"),
    prefix: Sequence[str] = (),
    **settings: Any,
) -> Server:
    """Start a server with a fake plugin (a name in tests/plugins) or any command.

    `program` is what Python runs instead of pfms, with the same arguments; `prefix` is a command
    that is put before it.
    """
    command = PLUGINS / plugin if (PLUGINS / plugin).exists() else plugin
    defaults: dict[str, Any] = {
        "plugin_command": command,
        "executor": "fresh",
        "min_free_bytes": 0,
        "memory_limit": 0,
        "devices": "cpu",
        "drain_seconds": 0,
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PFMS_")}
    for name, value in {**defaults, **settings}.items():
        environment[f"PFMS_{name.upper()}"] = str(value)
    workspace.mkdir(parents=True, exist_ok=True)
    log = workspace / "server.log"
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [
                *(*prefix, sys.executable, *program),
                *("serve", "--port", "0", "--workspace", str(workspace)),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout
    timer = threading.Timer(LISTEN_SECONDS, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    if not line.startswith("pfms listens on "):
        process.kill()
        process.communicate()
        raise AssertionError(f"the server did not start: {line}{log.read_text()}")
    return Server(workspace, process, line.split()[3], log)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers for one test; all are stopped after it."""
    servers: list[Server] = []

    def begin(
        plugin: str | Path = "ok.py", *, workspace: Path | None = None, **settings: Any
    ) -> Server:
        place = workspace or tmp_path / "workspace"
        if not (place / "models" / "demo").exists():
            seed_model(place)
        server = start(place, plugin, **settings)
        servers.append(server)
        return server

    yield begin
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A shared server with the fake plugin `ok.py`, for tests that leave it as it was."""
    workspace = tmp_path_factory.mktemp("shared-server") / "workspace"
    seed_model(workspace)
    one = start(workspace)
    yield one
    one.stop()


@pytest.fixture(scope="session")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another shared server, with small limits."""
    workspace = tmp_path_factory.mktemp("strict-server") / "workspace"
    seed_model(workspace)
    one = start(
        workspace,
        max_upload_bytes=UPLOAD_LIMIT,
        max_volume_bytes=2 * UPLOAD_LIMIT,
        max_grid_voxels=1_000_000,
    )
    yield one
    one.stop()


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A shared server with the real plugin and the demo model."""
    one = start_real(tmp_path_factory.mktemp("real-server") / "workspace", "warm")
    yield one
    one.stop()


def start_real(workspace: Path, executor: str) -> Server:
    """Start a server with the real plugin and the demo model."""
    one = start(workspace, "spleenseg", executor=executor)
    with (ROOT / "examples" / "demo_model.pth").open("rb") as file:
        answer = one.http.post(
            "/spleenseg/modelpth/", params={"modelID": "demo"}, files={"file": file}, timeout=120
        )
    assert answer.status_code == 200, answer.text
    return one
