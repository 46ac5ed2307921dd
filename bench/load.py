"""What the benches share: a server to measure, clients that cost little, and its memory."""

import gzip
import hashlib
import http.client
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import psutil

from pfms.settings import Settings
from tests.conftest import ROOT, Server, seed_model, start

MIB = 2**20
DEMO_MODEL = ROOT / "examples" / "demo_model.pth"
MODELS = "/api/v1/spleenseg/modelpth"
INFER = "/api/v1/spleenseg/NIfTIinference?modelID=demo"
FAKES = Path(__file__).parent / "plugins"

_BOUNDARY = "a-boundary-that-no-volume-holds"


@contextmanager
def serving(workspace: Path, plugin: str | Path = "empty.py", **settings: Any) -> Iterator[Server]:
    """Run a server with the model `demo`; with the real weights if the plugin is the real one."""
    real = plugin == "spleenseg"
    if not real and not (workspace / "models" / "demo").exists():
        seed_model(workspace)
    server = start(workspace, plugin, **settings)
    try:
        if real:
            params = {"modelID": "demo"}
            with DEMO_MODEL.open("rb") as file:
                server.http.post(
                    "/spleenseg/modelpth", params=params, files={"file": file}, timeout=300
                ).raise_for_status()
        wait_until_ready(server)
        yield server
    finally:
        server.stop()


def wait_until_ready(server: Server, seconds: float = 120) -> None:
    """Wait until `/health/ready` returns 200."""
    until = time.monotonic() + seconds
    while server.http.get(f"{server.url}/health/ready").status_code != 200:
        if time.monotonic() > until:
            raise TimeoutError("the server does not get ready")
        time.sleep(0.05)


def executors() -> list[str]:
    """Those of the measured executors that this pfms has."""
    known = Settings.model_fields["executor"].annotation
    return [name for name in ("fresh", "warm") if name in getattr(known, "__args__", ())]


class Answer(NamedTuple):
    """A response, and after how many seconds it came."""

    status: int
    body: bytes
    seconds: float


class Caller:
    """One persistent connection: on a machine with two cores, httpx would measure itself."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            place.hostname or "", place.port, timeout=1800
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        """GET it."""
        return self._ask("GET", path, None, headers or {})

    def infer(self, volume: bytes, path: str = INFER, prefer: str = "") -> Answer:
        """POST a volume."""
        head, tail = form()
        return self._ask("POST", path, head + volume + tail, form_headers(prefer))

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        started = time.perf_counter()
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        return Answer(answer.status, content, time.perf_counter() - started)


def form() -> tuple[bytes, bytes]:
    """What stands before and after the volume in the body of an upload."""
    disposition = 'Content-Disposition: form-data; name="file"; filename="volume"'
    head = f"--{_BOUNDARY}\r\n{disposition}\r\n\r\n"
    return head.encode(), f"\r\n--{_BOUNDARY}--\r\n".encode()


def form_headers(prefer: str = "") -> dict[str, str]:
    """The headers of an upload."""
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    return {**headers, "Prefer": prefer} if prefer else headers


def expect(status: int, answer: Answer) -> Answer:
    """The answer, if it has the expected status."""
    if answer.status != status:
        raise AssertionError(f"{answer.status} and not {status}: {answer.body[:500]!r}")
    return answer


def infer_once(server: Server, volume: bytes) -> tuple[float, str, dict[str, Any]]:
    """Make a blocking call, and remove its job.

    Returns:
        The seconds, the checksum of the labels' voxels, and the job.
    """
    with Caller(server.url) as caller:
        answer = expect(200, caller.infer(volume))
    job: dict[str, Any] = server.http.get("/jobs", params={"limit": 1}).json()["jobs"][0]
    server.http.delete(f"/jobs/{job['id']}").raise_for_status()
    return answer.seconds, hashlib.sha256(gzip.decompress(answer.body)[352:]).hexdigest(), job


def work_through(server: Server, volume: bytes, jobs: int, clients: int) -> float:
    """Make so many blocking calls with so many clients; the seconds until all have returned."""
    turns: Iterator[int] = iter(range(jobs))
    failures: list[BaseException] = []

    def call() -> None:
        try:
            with Caller(server.url) as caller:
                while next(turns, None) is not None:
                    expect(200, caller.infer(volume))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failures:
        raise failures[0]
    return seconds


def family(pid: int) -> list[psutil.Process]:
    """A process and all processes that it has started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def resident(pid: int) -> int:
    """Bytes of memory that a process holds now (RSS)."""
    return _status(pid, "VmRSS")


def peak(pid: int) -> int:
    """The most that it has held since `forget_peak`, bytes."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Reset the peak to what the process holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def proportional(pid: int) -> int:
    """Bytes that it holds, with its share of shared pages (PSS); 0 if it has just ended."""
    try:
        return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def open_files(pid: int) -> int:
    """How many descriptors it has open; 0 if it has just ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  (names alone are counted)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _status(pid: int, name: str) -> int:
    return _field(Path(f"/proc/{pid}/status"), name)


def _field(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
