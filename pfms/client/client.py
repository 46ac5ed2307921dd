"""The client.

Made from `client.py` by `python -m tools.blocking_client`: change that one.
"""

import json
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any, Self

import httpx

from pfms.client.address import quoted
from pfms.client.problems import ClientError, Json, PfmsProblem, is_away, is_busy, problem_of
from pfms.client.transport import CONNECT_SECONDS, Transport
from pfms.client.updates import ENDED, JobEvent, OnUpdate, Update, tell, update_of
from pfms.client.volumes import Segmentation, Sendable, Volume

_SILENCE_SECONDS = 40  # of an event stream; its heartbeat comes every 15
_PAUSE_SECONDS = 0.5  # between two reads of a growing log, or two attempts to follow a job


class Client:
    """Talks to one server.

    `segment`, `infer`, `submit`, `wait`, `result` and `save_result` go on through cut connections,
    a restart of the server, and its asking to try again later. A volume is sent again under the
    same Idempotency-Key, so it is never run twice. Every other call is made once.

    Args:
        url: Of the server, with or without `/api/v1`.
        timeout: Seconds without a byte after which an ordinary call fails; None waits forever.
            What may take long (the check of an upload, a run) has no timeout.
        retry_seconds: How long to go on while the server is away, as during a restart. One that
            has never answered this client is not waited for.
        busy_seconds: How long to go on while the server answers 429 or 503 with `Retry-After`.
        ca: Certificates of authorities, in PEM, to trust instead of those that the system trusts.
        auth: Such as `BearerToken("...")` of `pfms.client`.

    Raises:
        ValueError: `url` is not an http or https URL, or `ca` holds no certificates.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:2024",
        timeout: float | None = 60,
        retry_seconds: float = 60,
        *,
        busy_seconds: float = 600,
        ca: Path | None = None,
        auth: httpx.Auth | None = None,
    ) -> None:
        self._http = Transport(url, timeout, retry_seconds, busy_seconds, ca, auth)
        self.url = self._http.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- models ----------------------------------------------------------------------------

    def models(self) -> list[str]:
        """The model IDs, sorted."""
        answer = self._http.get("/spleenseg/modelpth/", "models")
        models: list[str] = answer["models"]
        return models

    def model(self, model_id: str) -> Json:
        """Everything that is known about a model."""
        return self._http.get(f"/spleenseg/modelpth/{quoted(model_id)}", "modelID")

    def upload_model(
        self, path: str | PathLike[str], model_id: str, on_update: OnUpdate | None = None
    ) -> Json:
        """Store weights under a model ID, replacing any model with that ID."""
        to, file, params = "/spleenseg/modelpth/", Sendable(path).open(), {"modelID": model_id}
        with self._http.upload(to, file, on_update, params=params) as response:
            return self._http.json(response, "modelID")

    def remove_model(self, model_id: str) -> None:
        """Remove a model."""
        self._http.call("DELETE", f"/spleenseg/modelpth/{quoted(model_id)}")

    # --- a run -----------------------------------------------------------------------------

    def segment(
        self,
        volume: Volume,
        model: str,
        *,
        resultant: str = "labels",
        key: str | None = None,
        on_update: OnUpdate | None = None,
    ) -> Segmentation:
        """Send a volume, wait for its segmentation and return it.

        Args:
            volume: The path of a NIfTI file, its bytes (plain or gzipped), or an image of nibabel.
            model: ID of a model on the server.
            resultant: `labels`, `onehot` or `logits`.
            key: The Idempotency-Key, 1 to 255 characters: a later call with the same volume, model
                and key joins the job of the first. By default each call has a key of its own.
            on_update: Called with the progress. Once there is a job, it runs on whatever happens
                here; `cancel` ends it.

        Raises:
            PfmsProblem: It was refused, or the run failed.
            Unreachable: The server does not answer, or stopped answering.
        """
        job, content = self._run(volume, model, None, resultant, key, on_update)
        return Segmentation(content, job)

    def infer(
        self,
        volume: Volume,
        model: str,
        target: str | PathLike[str],
        *,
        resultant: str = "labels",
        key: str | None = None,
        on_update: OnUpdate | None = None,
    ) -> Json | None:
        """Like `segment`, but the result goes to `target`, however large it is.

        That file appears once complete; an existing one is replaced.

        Returns:
            The job as it ended; None from a server that keeps no jobs.
        """
        job, _ = self._run(volume, model, Path(target), resultant, key, on_update)
        return job

    def submit(
        self,
        volume: Volume,
        model: str,
        *,
        resultant: str = "labels",
        key: str | None = None,
        on_update: OnUpdate | None = None,
    ) -> Json:
        """Send a volume, and return its job without waiting for it; `segment` says the rest."""
        job = self._submit(volume, model, None, resultant, key, on_update)
        if isinstance(job, bytes):
            raise PfmsProblem("not-pfms", f"the server at {self.url} keeps no jobs", "Use infer.")
        return job

    def _run(
        self,
        volume: Volume,
        model: str,
        target: Path | None,
        resultant: str,
        key: str | None,
        on_update: OnUpdate | None,
    ) -> tuple[Json | None, bytes]:
        """The job as it ended, if there is one, and its result, as `_take` returns it."""
        job = self._submit(volume, model, target, resultant, key, on_update)
        if isinstance(job, bytes):
            return None, job
        tell(on_update, Update("waiting", job=job["id"]))
        job = self.wait(job["id"], on_update)
        if job["error"] is not None:
            raise problem_of(job)
        return job, self._fetch(job["id"], target, resultant, on_update)

    def _submit(
        self,
        volume: Volume,
        model: str,
        target: Path | None,
        resultant: str,
        key: str | None,
        on_update: OnUpdate | None,
    ) -> Json | bytes:
        """The job of a volume; from a server that keeps no jobs, its result."""
        keeps_jobs = self._http.retried(lambda: self._check_model(model))
        sendable = Sendable(volume)
        request: dict[str, Any] = {
            "params": {"modelID": model, "resultant": resultant},
            "headers": {"Prefer": "respond-async", "Idempotency-Key": f'"{key or uuid.uuid4()}"'},
        }

        def send() -> str | bytes:
            path = "/spleenseg/NIfTIinference/"
            with self._http.upload(path, sendable.open(), on_update, **request) as response:
                if response.status_code == 202:
                    accepted = self._http.json(response, "id")
                    return str(accepted["id"])
                joined = response.headers.get("X-Pfms-Job")
                if joined is not None:  # the key's job, which has ended
                    return str(joined)
                return self._take(response, None, target, on_update)  # it has blocked

        try:
            # A server that keeps no jobs would run it again.
            found = self._http.retried(send) if keeps_jobs else send()
        except PfmsProblem as problem:
            if problem.job is None or problem.code == "idempotency-mismatch":
                raise
            found = problem.job  # the key's job, which has ended without a result
        if isinstance(found, bytes):
            return found
        job_id = found
        return self._http.retried(lambda: self.job(job_id))

    def _check_model(self, model_id: str) -> bool:
        """Fail before a large upload, not after it. False from servers without this call."""
        try:
            self.model(model_id)
        except PfmsProblem as problem:
            known = problem.code in ("model-not-found", "invalid-model-id")
            if known or problem.status == 401 or is_away(problem) or is_busy(problem):
                raise
            return not problem.code.startswith(("http-", "not-pfms"))
        return True

    def wait(self, job_id: str, on_update: OnUpdate | None = None) -> Json:
        """Wait for a job's end, even if the server restarts meanwhile."""
        after = 0
        while True:
            job = self._http.retried(lambda: self.job(job_id))
            if job["state"] in ENDED:
                return job
            tell(on_update, update_of(job))
            # A stream may break, or end because the server stops: then ask for the job again.
            try:
                with closing(self.events(job_id, after)) as events:
                    for event in events:
                        after = event.n if event else after
                        job = self.job(job_id)
                        if job["state"] in ENDED:
                            return job
                        tell(on_update, update_of(job))
            except ClientError as error:
                if not is_away(error) and not is_busy(error):
                    raise
            time.sleep(_PAUSE_SECONDS)

    def result(
        self, job_id: str, resultant: str = "labels", on_update: OnUpdate | None = None
    ) -> Segmentation:
        """What a job that succeeded has made."""
        content = self._fetch(job_id, None, resultant, on_update)
        return Segmentation(content, self._http.retried(lambda: self.job(job_id)))

    def save_result(
        self,
        job_id: str,
        target: str | PathLike[str],
        resultant: str = "labels",
        on_update: OnUpdate | None = None,
    ) -> None:
        """Download a job's result; `target` appears once complete."""
        self._fetch(job_id, Path(target), resultant, on_update)

    def _fetch(
        self, job_id: str, target: Path | None, resultant: str, on_update: OnUpdate | None
    ) -> bytes:
        def download() -> bytes:
            path, params = f"/jobs/{quoted(job_id)}/result", {"resultant": resultant}
            with self._http.stream("GET", path, params=params) as response:
                return self._take(response, job_id, target, on_update)

        return self._http.retried(download)

    def _take(
        self,
        response: httpx.Response,
        job_id: str | None,
        target: Path | None,
        on_update: OnUpdate | None,
    ) -> bytes:
        """The result in a response; nothing if it has been saved to `target`."""
        if target is not None:
            self._http.save(response, target, job_id, on_update)
            return b""
        pieces = self._http.pieces(response, job_id, on_update)
        return b"".join(pieces)

    # --- jobs ------------------------------------------------------------------------------

    def jobs(
        self, *, state: str | None = None, model_id: str | None = None, limit: int = 50
    ) -> list[Json]:
        """The jobs, newest first, at most `limit`."""
        asked = {"state": state, "modelID": model_id}
        params = {name: value for name, value in asked.items() if value is not None}
        found: list[Json] = []
        while len(found) < limit:
            params["limit"] = str(min(1000, limit - len(found)))
            page = self._http.get("/jobs", "jobs", params=params)
            found += page["jobs"]
            if page["next"] is None:
                break
            params["cursor"] = page["next"]
        return found

    def job(self, job_id: str) -> Json:
        """Everything that is known about a job."""
        return self._http.get(f"/jobs/{quoted(job_id)}", "state")

    def events(self, job_id: str, after: int = 0) -> Generator[JobEvent | None, None, None]:
        """A job's events after number `after`, and those to come; None is a heartbeat.

        The stream ends when the job ends, or before that when the server stops.
        """
        headers = {"Last-Event-ID": str(after)} if after else {}
        timeout = httpx.Timeout(_SILENCE_SECONDS, connect=CONNECT_SECONDS)
        path = f"/jobs/{quoted(job_id)}/events"
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                name, _, value = line.partition(":")
                if name:
                    fields[name] = value.removeprefix(" ")
                elif line:  # a comment
                    yield None
                elif "data" in fields:
                    data = json.loads(fields["data"])
                    yield JobEvent(int(fields["id"]), fields["event"], data)
                    fields = {}

    def log(self, job_id: str, follow: bool = False) -> Iterator[bytes]:
        """What the plugin has printed so far, in pieces; with `follow`, until the job has ended."""
        seen = 0
        while True:
            ended = not follow or (self.job(job_id))["state"] in ENDED
            position = 0
            with self._http.stream("GET", f"/jobs/{quoted(job_id)}/log") as response:
                for chunk in response.iter_bytes():
                    position += len(chunk)
                    if position > seen:
                        yield chunk[len(chunk) - (position - seen) :]
                        seen = position
            if position < seen:  # the job was started again, and has a new log
                seen = 0
            elif ended:
                return
            else:
                time.sleep(_PAUSE_SECONDS)

    def preview(self, job_id: str) -> bytes:
        """A PNG: slices through the spleen with the labels drawn on them."""
        answer = self._http.call("GET", f"/jobs/{quoted(job_id)}/preview.png")
        return answer.content

    def cancel(self, job_id: str) -> Json:
        """Cancel a job."""
        answer = self._http.call("POST", f"/jobs/{quoted(job_id)}/cancel")
        return self._http.json(answer, "state")

    def rerun(self, job_id: str) -> Json:
        """Run a job again: a new job with the same volume, weights and options."""
        answer = self._http.call("POST", f"/jobs/{quoted(job_id)}/rerun")
        return self._http.json(answer, "state")

    def remove_job(self, job_id: str, *, purge_voxels: bool = False) -> None:
        """Remove an ended job; with `purge_voxels`, only its volumes and weights."""
        params = {"purge": "voxels"} if purge_voxels else {}
        self._http.call("DELETE", f"/jobs/{quoted(job_id)}", params=params)
