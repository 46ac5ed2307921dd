"""The client's requests and responses, and what went wrong with them, in the words of pfms."""

import io
import json
import os
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import truststore

from pfms.hosts import LOOPBACK

T = TypeVar("T")
Json = dict[str, Any]

CONNECT_SECONDS = 10
_CHUNK = 1 << 16  # bytes


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
        code: The stable name that programs test for, such as `model-not-found`.
        status: Of the HTTP response; None if it is a job that failed.
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
    """How far a call has got.

    Attributes:
        stage: `uploading`, `checking` (the server looks at the upload; there is no `job` yet),
            `waiting`, then the stages of the run: `loading`, `inferring`, `resampling`, `writing`,
            `checking` (of the result); then `downloading`.
        done: Bytes of an upload or a download; of a stage of the run, windows of the network while
            `inferring`, otherwise per cent; None if unknown.
        total: How many there are in total.
        job: The job's ID, once it has one.
        fraction: How much of the run is done, 0 to 1; None if unknown.
        place: In the queue; 0 runs next.
        elapsed: Seconds since the run began.
        expected: Seconds that recent runs of this model took.
    """

    stage: str
    done: int | None = None
    total: int | None = None
    job: str | None = None
    place: int | None = None
    elapsed: float | None = None
    expected: float | None = None
    fraction: float | None = None


OnUpdate = Callable[[Update], None]


class Transport:
    """Requests to one server; `PfmsClient` says what its arguments mean.

    Raises:
        ValueError: `url` is not an http or https URL, or `ca` holds no certificates.
    """

    def __init__(
        self,
        url: str,
        timeout: float | None,
        retry_seconds: float,
        ca: Path | None,
        auth: httpx.Auth | None,
    ) -> None:
        self.url = base_url(url)
        self._retry_seconds = retry_seconds
        # A proxy from the environment cannot lead to this machine, whatever NO_PROXY says.
        loopback = httpx.URL(self.url).host in LOOPBACK
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1",
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
            trust_env=not loopback,
            verify=_trusting(ca),
            auth=auth,
            follow_redirects=False,  # a volume and a token go to the server that was named
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, key: str, **request: Any) -> Json:
        """The JSON object that a GET returns; it must have `key`."""
        return self.json(self.call("GET", path, **request), key)

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The whole response to a request.

        Raises:
            PfmsProblem: The server refused it.
            Unreachable: It does not answer.
        """
        with self.stream(method, path, **request) as response:
            response.read()
            return response

    @contextmanager
    def stream(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        """The response to a request, its body still unread; raises as `call` does."""
        try:
            with self._http.stream(method, path, **request) as response:
                if not response.is_success:
                    response.read()
                    raise _problem(response)
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = str(error).partition("] ")[2] or str(error)
            remedy = "Start one with `pfms serve`, or name another with --server."
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                reason = reason.partition(" (_ssl.c")[0]
                remedy = "If its authority is your own, name its certificate: --ca FILE (PFMS_CA)."
            elif "[SSL:" in str(error):
                remedy = "Is TLS spoken there? If not, the URL begins with http://."
            raise Unreachable(f"pfms cannot be reached at {self.url}: {reason}", remedy) from error
        except httpx.TransportError as error:
            raise Unreachable(
                f"the connection to {self.url} broke: {error or type(error).__name__}",
                "Jobs that it has accepted go on: `pfms jobs list` shows them.",
            ) from error

    @contextmanager
    def upload(
        self, path: str, file: Path, on_update: OnUpdate | None, **request: Any
    ) -> Iterator[httpx.Response]:
        """POST a file from disk. Its name may be a patient's, so it is not sent."""
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        with _ReportingFile(file, on_update) as content:
            files = {"file": ("upload", content)}
            with self.stream("POST", path, files=files, timeout=timeout, **request) as response:
                yield response

    def save(
        self, response: httpx.Response, target: Path, job: str | None, on_update: OnUpdate | None
    ) -> None:
        """Write a response's body to `target`, which appears once complete."""
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
        """The JSON object in a response; it must have `key`.

        Raises:
            PfmsProblem: It is something else, so the server is not pfms.
        """
        try:
            body = json.loads(response.read())
        except ValueError:
            body = None
        if not isinstance(body, dict) or key not in body:
            raise PfmsProblem(
                "not-pfms",
                f"the server at {self.url} is not pfms",
                "Check the address: is a proxy or another service there?",
                response.status_code,
            )
        return body

    def retried(self, call: Callable[[], T]) -> T:
        """Make a call that changes nothing, again and again while the server is away."""
        until = time.monotonic() + self._retry_seconds
        pause = 0.1
        while True:
            try:
                return call()
            except Unreachable:
                if time.monotonic() + pause > until:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 3.0)


class _ReportingFile(io.FileIO):
    """A file that reports how far it has been read."""

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


def _trusting(ca: Path | None) -> ssl.SSLContext:
    """TLS that trusts the certificates in a file, or those that this system trusts."""
    if ca is None:
        return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise ValueError(f"{ca} holds no certificates in PEM") from None
    except OSError as error:
        raise ValueError(f"{ca} cannot be read: {error.strerror}") from None


def base_url(text: str) -> str:
    """The complete URL of a server, without `/api/v1`, from what a person may type."""
    text = text.strip() if "://" in text else f"http://{text.strip()}"
    text = text.rstrip("/").removesuffix("/api/v1").rstrip("/")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{text!r} is not an http or https URL")
    return text


def quoted(name: str) -> str:
    """An ID as one segment of a path, which it cannot leave."""
    if name in ("", ".", ".."):
        raise PfmsProblem("not-found", f"{name!r} is not an ID", "The lists show all IDs.", 404)
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
            "This is not how pfms answers: is the address right?",
            status,
        )
