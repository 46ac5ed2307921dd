"""A client's requests and responses, and what went wrong with them, in the words of pfms."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import httpx

from pfms.client.address import base_url, trusting
from pfms.client.patience import Patience
from pfms.client.problems import ClientError, Json, PfmsProblem, Unreachable, problem_in
from pfms.client.updates import OnUpdate, ReportingFile, Update, tell
from pfms.hosts import LOOPBACK

T = TypeVar("T")

CONNECT_SECONDS = 10
_CHUNK = 1 << 16  # bytes


class Transport:
    """Requests to one server; `Client` says what its arguments mean.

    Raises:
        ValueError: `url` is not an http or https URL, or `ca` holds no certificates.
    """

    def __init__(
        self,
        url: str,
        timeout: float | None,
        retry_seconds: float,
        busy_seconds: float,
        ca: Path | None,
        auth: httpx.Auth | None,
    ) -> None:
        self.url = base_url(url)
        self._retry_seconds = retry_seconds
        self._busy_seconds = busy_seconds
        self._was_there = False  # something has answered, or at least taken a connection
        # A proxy from the environment cannot lead to this machine, whatever NO_PROXY says.
        loopback = httpx.URL(self.url).host in LOOPBACK
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1",
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
            trust_env=not loopback,
            verify=trusting(ca),
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
                self._was_there = True
                if not response.is_success:
                    response.read()
                    raise problem_in(response)
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
            self._was_there = True
            raise Unreachable(
                f"the connection to {self.url} broke: {error or type(error).__name__}",
                "Jobs that it has accepted go on: `pfms jobs list` shows them.",
            ) from error

    @contextmanager
    def upload(
        self, path: str, file: BinaryIO, on_update: OnUpdate | None, **request: Any
    ) -> Iterator[httpx.Response]:
        """POST a file, and close it. Its name may be a patient's, so it is not sent."""
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        with ReportingFile(file, on_update) as content:
            files = {"file": ("upload", content)}
            request = {"files": files, "timeout": timeout, **request}
            with self.stream("POST", path, **request) as response:
                yield response

    def save(
        self, response: httpx.Response, target: Path, job: str | None, on_update: OnUpdate | None
    ) -> None:
        """Write a response's body to `target`, which appears once complete."""
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                for chunk in self.pieces(response, job, on_update):
                    file.write(chunk)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def pieces(
        self, response: httpx.Response, job: str | None, on_update: OnUpdate | None
    ) -> Iterator[bytes]:
        """A response's body, piece by piece."""
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        done = 0
        for chunk in response.iter_bytes(_CHUNK):
            done += len(chunk)
            tell(on_update, Update("downloading", done, total, job))
            yield chunk

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
        """Make a call that may be repeated, again and again while the server is away or busy.

        A server that was never there is not waited for: its address may be wrong.
        """
        patience = Patience(self._retry_seconds, self._busy_seconds)
        while True:
            try:
                return call()
            except ClientError as error:
                pause = patience.pause_after(error) if self._was_there else None
                if pause is None:
                    raise
            time.sleep(pause)
