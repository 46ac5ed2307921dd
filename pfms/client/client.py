"""The HTTP client that the command line uses, and other programs can use.

::

    with PfmsClient("http://127.0.0.1:2024") as client:
        client.upload_model(Path("model.pth"), "mine")
        client.infer(Path("CT.nii.gz"), "mine", Path("CT-spleen.nii.gz"))

Only calls that change nothing are ever repeated, so that nothing is done twice.
"""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from pfms.client.transport import (
    CONNECT_SECONDS,
    ClientError,
    Json,
    OnUpdate,
    PfmsProblem,
    Transport,
    Unreachable,
    Update,
    quoted,
    tell,
)

__all__ = ["ClientError", "JobEvent", "Json", "PfmsClient", "PfmsProblem", "Unreachable", "Update"]

ENDED = frozenset({"succeeded", "failed", "cancelled"})

_SILENCE_SECONDS = 40  # of an event stream; its heartbeat comes every 15
_PAUSE_SECONDS = 0.5  # between two reads of a growing log, or two attempts to follow a job


@dataclass(frozen=True)
class JobEvent:
    """One event of a job: `kind` is `state` or `progress`, `n` grows."""

    n: int
    kind: str
    data: Json


class PfmsClient:
    """Talks to one server.

    Args:
        url: Of the server, with or without `/api/v1`.
        timeout: Seconds without a byte after which an ordinary call fails; None waits forever.
            What may take long (the check of an upload, a run) has no timeout.
        retry_seconds: How long to keep asking for a job while the server is away, as during a
            restart.
        ca: Certificates of authorities, in PEM, to trust instead of those that the system trusts.
        auth: Such as `BearerToken("...")` of `pfms.client`.

    Raises:
        ValueError: `url` is not an http or https URL, or `ca` holds no certificates.
    """

    def __init__(
        self,
        url: str,
        timeout: float | None = 60,
        retry_seconds: float = 60,
        *,
        ca: Path | None = None,
        auth: httpx.Auth | None = None,
    ) -> None:
        self._http = Transport(url, timeout, retry_seconds, ca, auth)
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
        models: list[str] = self._http.get("/spleenseg/modelpth/", "models")["models"]
        return models

    def model(self, model_id: str) -> Json:
        """Everything that is known about a model."""
        return self._http.get(f"/spleenseg/modelpth/{quoted(model_id)}", "modelID")

    def upload_model(self, path: Path, model_id: str, on_update: OnUpdate | None = None) -> Json:
        """Store weights under a model ID, replacing any model with that ID."""
        params = {"modelID": model_id}
        with self._http.upload("/spleenseg/modelpth/", path, on_update, params=params) as response:
            return self._http.json(response, "modelID")

    def remove_model(self, model_id: str) -> None:
        """Remove a model."""
        self._http.call("DELETE", f"/spleenseg/modelpth/{quoted(model_id)}")

    # --- a run -----------------------------------------------------------------------------

    def infer(
        self,
        volume: Path,
        model_id: str,
        target: Path,
        *,
        resultant: str = "labels",
        on_update: OnUpdate | None = None,
    ) -> Json | None:
        """Send a volume, wait for its segmentation and save it.

        Args:
            volume: NIfTI, plain or gzipped.
            model_id: Of a model on the server.
            target: Appears once complete; an existing file is replaced.
            resultant: `labels`, `onehot` or `logits`.
            on_update: Called with the progress. Once there is a job, it runs on whatever happens
                here; `cancel` ends it.

        Returns:
            The job as it ended; None from a server that keeps no jobs.

        Raises:
            PfmsProblem: It was refused, or the run failed.
            Unreachable: The server does not answer, or stopped answering.
        """
        self._check_model(model_id)
        request: dict[str, Any] = {
            "params": {"modelID": model_id, "resultant": resultant},
            "headers": {"Prefer": "respond-async", "Idempotency-Key": f'"{uuid.uuid4()}"'},
        }
        path = "/spleenseg/NIfTIinference/"
        with self._http.upload(path, volume, on_update, **request) as response:
            if response.status_code != 202:  # it does not know the preference, and has blocked
                self._http.save(response, target, None, on_update)
                job_id = response.headers.get("X-Pfms-Job")
                return self.job(job_id) if job_id else None
            job_id = self._http.json(response, "id")["id"]
        tell(on_update, Update("waiting", job=job_id))
        job = self.wait(job_id, on_update)
        if job["error"] is not None:
            error = job["error"]
            raise PfmsProblem(error["code"], error["detail"], error["remedy"], None, job_id)
        self.save_result(job_id, target, resultant, on_update)
        return job

    def _check_model(self, model_id: str) -> None:
        """Fail before a large upload, not after it."""
        try:
            self.model(model_id)
        except PfmsProblem as problem:
            if problem.code in ("model-not-found", "invalid-model-id") or problem.status == 401:
                raise  # other servers may not have this call

    def wait(self, job_id: str, on_update: OnUpdate | None = None) -> Json:
        """Wait for a job's end, even if the server restarts meanwhile."""
        after = 0
        while True:
            job = self._http.retried(lambda: self.job(job_id))
            if job["state"] in ENDED:
                return job
            tell(on_update, _update_of(job))
            # A stream may break, or end because the server stops: then ask for the job again.
            with suppress(Unreachable):
                for event in self.events(job_id, after):
                    after = event.n if event else after
                    job = self.job(job_id)
                    if job["state"] in ENDED:
                        return job
                    tell(on_update, _update_of(job))
            time.sleep(_PAUSE_SECONDS)

    def save_result(
        self,
        job_id: str,
        target: Path,
        resultant: str = "labels",
        on_update: OnUpdate | None = None,
    ) -> None:
        """Download a job's result; `target` appears once complete."""

        def download() -> None:
            path, params = f"/jobs/{quoted(job_id)}/result", {"resultant": resultant}
            with self._http.stream("GET", path, params=params) as response:
                self._http.save(response, target, job_id, on_update)

        self._http.retried(download)

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

    def events(self, job_id: str, after: int = 0) -> Iterator[JobEvent | None]:
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
            ended = not follow or self.job(job_id)["state"] in ENDED
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
        return self._http.call("GET", f"/jobs/{quoted(job_id)}/preview.png").content

    def cancel(self, job_id: str) -> Json:
        """Cancel a job."""
        answer = self._http.call("POST", f"/jobs/{quoted(job_id)}/cancel")
        return self._http.json(answer, "state")

    def remove_job(self, job_id: str, *, purge_voxels: bool = False) -> None:
        """Remove an ended job; with `purge_voxels`, only its volumes and weights."""
        params = {"purge": "voxels"} if purge_voxels else {}
        self._http.call("DELETE", f"/jobs/{quoted(job_id)}", params=params)


def _update_of(job: Json) -> Update:
    progress = job["progress"]
    names = ("stage", "done", "total", "elapsed", "expected", "fraction")
    known = {name: progress.get(name) for name in names}
    return Update(**known, job=job["id"], place=job["place"])
