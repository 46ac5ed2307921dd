"""How the client talks: one request, one answer, and what went wrong, in the words of pfms."""

import io
import json
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
Json = dict[str, Any]

CONNECT_SECONDS = 10
_CHUNK = 1 << 16  # bytes
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ClientError(Exception):
    """What went wrong between this client and a server.

    Attributes:
        detail: What is wrong, one sentence.
        remedy: What to do about it, one sentence; may be empty.
        job: The ID of the job it belongs to, if any.
    """

    def __init__(self, detail: str, remedy: str = "", job: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.job = job


class Unreachable(ClientError):
    """Nothing answers there, or it stopped answering."""


class PfmsProblem(ClientError):
    """The server refused, or the run failed.

    Attributes:
        code: The stable name that programs test for, as `model-not-found`.
        status: Of the HTTP answer; None where a job is told to have failed.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        remedy: str = "",
        status: int | None = None,
        job: str | None = None,
    ) -> None:
        super().__init__(detail, remedy, job)
        self.code = code
        self.status = status


@dataclass(frozen=True)
class Update:
    """How far a call is.

    Attributes:
        stage: `uploading`, `checking`, `waiting`, `loading`, `inferring`, `saving`, `downloading`.
        done: Bytes of an upload or a download, windows of the network; None where nobody knows.
        total: Likewise, in all.
        job: The job's ID, once it has one.
        place: In the queue, 0 the next one to run.
        elapsed: Seconds that the run takes so far.
        expected: Seconds that runs of this model took lately.
    """

    stage: str
    done: int | None = None
    total: int | None = None
    job: str | None = None
    place: int | None = None
    elapsed: float | None = None
    expected: float | None = None


OnUpdate = Callable[[Update], None]


class Transport:
    """Requests to one server; `PfmsClient` says what its arguments mean.

    Raises:
        ValueError: `url` is none of http or https.
    """

    def __init__(self, url: str, timeout: float | None, patience: float) -> None:
        self.url = _base_url(url)
        self._patience = patience
        # A proxy of the environment is no way to this machine, whatever NO_PROXY says.
        loopback = httpx.URL(self.url).host in _LOOPBACK
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1",
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
            trust_env=not loopback,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, key: str, **request: Any) -> Json:
        """The JSON object that answers a GET; it has to have `key`."""
        return self.json(self.call("GET", path, **request), key)

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The whole answer to a request.

        Raises:
            PfmsProblem: The server refused it.
            Unreachable: It does not answer.
        """
        with self.stream(method, path, **request) as response:
            response.read()
            return response

    @contextmanager
    def stream(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        """The answer to a request, its body still to be read; raises as `call` does."""
        try:
            with self._http.stream(method, path, **request) as response:
                if not response.is_success:
                    response.read()
                    raise _problem(response)
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = str(error).partition("] ")[2] or str(error)
            raise Unreachable(
                f"no pfms can be reached at {self.url}: {reason}",
                "Start one with `pfms serve`, or name another with --server.",
            ) from error
        except httpx.TransportError as error:
            raise Unreachable(
                f"the connection to {self.url} broke: {error or type(error).__name__}",
                "What it had accepted goes on there: `pfms jobs list` shows it.",
            ) from error

    @contextmanager
    def upload(
        self, path: str, file: Path, on_update: OnUpdate | None, **request: Any
    ) -> Iterator[httpx.Response]:
        """POST a file from disk. Its name may be a patient's, so it stays here."""
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        with _Counted(file, on_update) as content:
            files = {"file": ("upload", content)}
            with self.stream("POST", path, files=files, timeout=timeout, **request) as response:
                yield response

    def save(
        self, response: httpx.Response, target: Path, job: str | None, on_update: OnUpdate | None
    ) -> None:
        """Write an answer's body to `target`, which appears when complete."""
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                for chunk in response.iter_bytes(_CHUNK):
                    file.write(chunk)
                    tell(on_update, Update("downloading", file.tell(), total, job))
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def json(self, response: httpx.Response, key: str) -> Json:
        """The JSON object in an answer; it has to have `key`.

        Raises:
            PfmsProblem: It is something else: what answers is no pfms.
        """
        try:
            body = json.loads(response.read())
        except ValueError:
            body = None
        if not isinstance(body, dict) or key not in body:
            raise PfmsProblem(
                "not-pfms",
                f"what answers at {self.url} is no pfms",
                "Look at the address: is a proxy or another service there?",
                response.status_code,
            )
        return body

    def patiently(self, call: Callable[[], T]) -> T:
        """Repeat a call that changes nothing for as long as a server may be away."""
        until = time.monotonic() + self._patience
        pause = 0.1
        while True:
            try:
                return call()
            except Unreachable:
                if time.monotonic() + pause > until:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 3.0)


class _Counted(io.FileIO):
    """A file that tells how far it has been read."""

    def __init__(self, path: Path, on_update: OnUpdate | None) -> None:
        super().__init__(path, "rb")
        self._on_update = on_update
        self._total = os.fstat(self.fileno()).st_size
        tell(on_update, Update("uploading", 0, self._total))

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size) or b""
        done = self.tell()
        stage = "uploading" if done < self._total else "checking"
        tell(self._on_update, Update(stage, done, self._total))
        return data


def tell(on_update: OnUpdate | None, update: Update) -> None:
    """Pass an update on, if anyone wants it."""
    if on_update is not None:
        on_update(update)


def _base_url(text: str) -> str:
    """Scheme, host and port of what a person may type."""
    text = text.strip() if "://" in text else f"http://{text.strip()}"
    text = text.rstrip("/").removesuffix("/api/v1").rstrip("/")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{text!r} is no URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{text!r} is no URL of http or https")
    return text


def quoted(name: str) -> str:
    """An ID as a part of a path, from which it does not lead away."""
    if name in ("", ".", ".."):
        raise PfmsProblem("not-found", f"{name!r} is no ID", "The lists show those there are.", 404)
    return urllib.parse.quote(name, safe="")


def _problem(response: httpx.Response) -> PfmsProblem:
    status = response.status_code
    try:
        body = response.json()
        return PfmsProblem(
            body["code"], body["detail"], body.get("remedy", ""), status, body.get("job")
        )
    except (ValueError, KeyError, TypeError):
        words = " ".join(response.text.split())[:200] or response.reason_phrase
        return PfmsProblem(
            f"http-{status}",
            f"the server answered {status}: {words}",
            "It does not answer as pfms does: is this its address?",
            status,
        )
