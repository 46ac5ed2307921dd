"""Clients that do all kinds of things at once, and remember what they were told."""

import hashlib
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.conftest import ROOT, Server, nifti_bytes

LOST = (httpx.TransportError, httpx.StreamError)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Told:
    """What the clients were told until the power failed, and what they had asked for.

    A job is added to `deleting`, `purging` or `cancelling` before the request is sent: the request
    may have been carried out without an answer.
    """

    answers: int = 0
    volumes: dict[str, bytes] = field(default_factory=dict)  # of each acknowledged job
    fails: set[str] = field(default_factory=set)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[tuple[str, str], str] = field(default_factory=dict)  # checksums
    logs: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)  # checksums
    deleting: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    purging: set[str] = field(default_factory=set)
    purged: set[str] = field(default_factory=set)
    cancelling: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)

    def succeeded(self) -> list[str]:
        """Jobs that were reported to have succeeded and that nobody is about to remove."""
        gone = self.deleting | self.purging
        return [i for i, job in self.ended.items() if job["state"] == "succeeded" and i not in gone]


class Clients:
    """Some clients of a server, each in a thread, until it no longer answers."""

    def __init__(self, server: Server, seed: str) -> None:
        self.told = Told()
        self._server = server
        self._lock = threading.Lock()
        self._rng = random.Random(seed)
        self._sent = 0
        self.faults: list[BaseException] = []
        acts = [self._all_sorts, self._all_sorts, self._upload_model]
        self._threads = [threading.Thread(target=self._until_lost, args=(act,)) for act in acts]
        for thread in self._threads:
            thread.start()

    def join(self) -> Told:
        """What they were told, once they have noticed that the server is gone."""
        for thread in self._threads:
            thread.join()
        if self.faults:
            raise self.faults[0]
        return self.told

    def _until_lost(self, act: Callable[[], None]) -> None:
        try:
            act()
        except LOST:
            pass
        except BaseException as fault:
            self.faults.append(fault)

    def _call(self, method: str, path: str, *status: int, **request: Any) -> httpx.Response:
        answer = self._server.http.request(method, path, **request)
        assert answer.status_code in (status or (200,)), (method, path, answer.text)
        self.told.answers += 1
        return answer

    def _all_sorts(self) -> None:
        while True:
            with self._lock:
                act = self._rng.choice(
                    (
                        self._wait_and_fetch,
                        self._wait_and_fetch,
                        self._block,
                        self._keyed,
                        self._fail,
                        self._logits,
                        self._rerun,
                        self._purge,
                        self._delete,
                        self._cancel,
                    )
                )
            act()

    # --- what they do ----------------------------------------------------------------------

    def _send(
        self, model: str = "demo", resultant: str = "labels", **headers: str
    ) -> tuple[httpx.Response, str]:
        with self._lock:
            self._sent += 1
            volume = nifti_bytes(seed=self._sent)
        answer = self._call(
            "POST",
            "/spleenseg/NIfTIinference/",
            *(200, 202, 500),
            params={"modelID": model, "resultant": resultant},
            files={"file": volume},
            headers=headers,
        )
        job_id = answer.headers["x-pfms-job"]
        self.told.volumes[job_id] = volume
        if model == "exit3":
            self.told.fails.add(job_id)
        return answer, job_id

    def _submit(self, **request: str) -> str:
        answer, job_id = self._send(**request, Prefer="respond-async")
        assert answer.status_code == 202, answer.text
        return job_id

    def _end_of(self, job_id: str) -> dict[str, Any]:
        while True:
            job: dict[str, Any] = self._call("GET", f"/jobs/{job_id}").json()
            if job["ended_at"]:
                self.told.ended[job_id] = job
                return job

    def _wait_and_fetch(self) -> None:
        job_id = self._submit()
        self._end_of(job_id)
        for resultant in ("labels", "onehot"):
            self._fetch(job_id, resultant)

    def _fetch(self, job_id: str, resultant: str) -> None:
        # the other client may be removing it
        answer = self._call(
            "GET", f"/jobs/{job_id}/result", 200, 404, 410, params={"resultant": resultant}
        )
        if answer.status_code == 200:
            self.told.results[job_id, resultant] = sha256(answer.content)

    def _block(self) -> None:
        answer, job_id = self._send()
        assert answer.status_code == 200, answer.text
        self.told.results[job_id, "labels"] = sha256(answer.content)
        self.told.ended[job_id] = {"state": "succeeded"}

    def _keyed(self) -> None:
        key = f"key-{self._sent}-{threading.get_ident()}"
        answer, job_id = self._send(**{"Idempotency-Key": key})
        self.told.keys[job_id] = key
        assert answer.status_code == 200, answer.text
        self.told.ended[job_id] = {"state": "succeeded"}

    def _fail(self) -> None:
        job_id = self._submit(model="exit3")
        assert self._end_of(job_id)["state"] == "failed"
        log = self._call("GET", f"/jobs/{job_id}/log").text
        if log:
            self.told.logs[job_id] = log

    def _logits(self) -> None:
        job_id = self._submit(resultant="logits")
        self._end_of(job_id)
        self._fetch(job_id, "logits")

    def _any_succeeded(self) -> str | None:
        with self._lock:
            found = self.told.succeeded()
            return self._rng.choice(found) if found else None

    def _rerun(self) -> None:
        if (job_id := self._any_succeeded()) is None:
            return
        answer = self._call("POST", f"/jobs/{job_id}/rerun", 202, 404, 410)
        if answer.status_code == 202:
            self.told.volumes[answer.json()["id"]] = self.told.volumes[job_id]

    def _purge(self) -> None:
        if (job_id := self._any_succeeded()) is None:
            return
        self.told.purging.add(job_id)
        answer = self._call("DELETE", f"/jobs/{job_id}?purge=voxels", 204, 404, 409)
        if answer.status_code == 204:
            self.told.purged.add(job_id)

    def _delete(self) -> None:
        if (job_id := self._any_succeeded()) is None:
            return
        self.told.deleting.add(job_id)
        answer = self._call("DELETE", f"/jobs/{job_id}", 204, 404, 409)
        if answer.status_code == 204:
            self.told.deleted.add(job_id)

    def _cancel(self) -> None:
        job_id = self._submit()
        self.told.cancelling.add(job_id)
        answer = self._call("POST", f"/jobs/{job_id}/cancel", 200, 202)
        if answer.status_code == 202 and answer.json()["cancel_requested"]:
            self.told.cancelled.add(job_id)

    def _upload_model(self) -> None:
        content = (ROOT / "examples" / "demo_model.pth").read_bytes()
        answer = self._call(
            "POST", "/spleenseg/modelpth/", params={"modelID": "sent"}, files={"file": content}
        )
        self.told.models["sent"] = answer.json()["sha256"]
