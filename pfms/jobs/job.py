"""The record of a job, and the table of its states."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pfms.clock import iso, utc_now
from pfms.errors import Cancelled, Interrupted, JobNotFound, PfmsError, by_code
from pfms.plugin.types import Resultant

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]

TRANSITIONS: dict[State, frozenset[State]] = {
    "queued": frozenset({"running", "failed", "cancelled"}),
    # back to queued only if the server stops or dies during the run
    "running": frozenset({"succeeded", "failed", "cancelled", "queued"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
ENDED: frozenset[State] = frozenset(state for state, after in TRANSITIONS.items() if not after)

CHRIS_STATUS: dict[State, str] = {
    "queued": "notStarted",
    "running": "started",
    "succeeded": "finishedSuccessfully",
    "failed": "finishedWithError",
    "cancelled": "cancelled",
}

SCHEMA_VERSION = 1  # of a record: raised when the meaning of a field changes

JOB_ID = re.compile(r"\d{4}(-\d\d){5}-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def valid_job_id(text: str) -> str:
    """Return `text` if it can be a job's ID, and so the name of its folder.

    Raises:
        JobNotFound: It cannot, so there is no such job.
    """
    if not JOB_ID.fullmatch(text):
        raise JobNotFound("No job has this ID.")
    return text


class Record(BaseModel):
    """Frozen. Unknown fields, which a newer pfms wrote, are kept and written back."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ModelUsed(Record):
    """The weights of a run, as they were when it was accepted."""

    modelID: str
    sha256: str


class VolumeSent(Record):
    """The volume as it was uploaded, without its file name or the texts in its header.

    `size` (bytes) and `sha256` are those of the upload; `shape` is (x, y, z), `spacing` in mm;
    `minimum` and `maximum` are those of the scaled voxels. `scaled` says whether they differ from
    the stored ones; older records do not have it.
    """

    size: int
    sha256: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    dtype: str
    scaled: bool | None = None
    minimum: float
    maximum: float
    warnings: list[str] = Field(default_factory=list)


class FileFacts(Record):
    """What identifies a file's content: its size in bytes and its SHA-256."""

    size: int
    sha256: str


class Segmentation(Record):
    """The result. `size` and `sha256` are those of the labels' file; `files` has the others'.

    `voxels_sha256` is that of the labels' uncompressed bytes, in file order.
    """

    sha256: str
    voxels_sha256: str
    size: int
    spleen_voxels: int
    spleen_ml: float
    files: dict[Resultant, FileFacts] = Field(default_factory=dict)

    def facts(self, resultant: Resultant) -> FileFacts | None:
        """What was recorded about a resultant's file; None if the record is too old to say."""
        if resultant == "labels":
            return FileFacts(size=self.size, sha256=self.sha256)
        return self.files.get(resultant)


class Cause(Record):
    """Why there is no result: the fields of an error from `errors`."""

    code: str
    title: str
    detail: str
    remedy: str

    @classmethod
    def of(cls, error: PfmsError) -> "Cause":
        """The cause that describes an error."""
        return cls(code=error.code, title=error.title, detail=error.detail, remedy=error.remedy)

    def error(self, job: str) -> PfmsError:
        """The error that this cause describes."""
        return by_code(self.code)(self.detail, self.remedy, job=job)


class PluginUsed(Record):
    """The plugin of a run; `version` is None if it cannot be told from the command."""

    name: str
    version: str | None = None


@dataclass(frozen=True)
class RunFacts:
    """How a run was started, for its record.

    Attributes:
        device: `cpu` or `cuda:N`.
        executor: The executor's name.
        plugin: The plugin and its version.
        command: The command line; paths are relative to the job's folder.
        environment: What was set on top of the server's own environment.
        versions: Of everything that affects the voxels.
    """

    device: str
    executor: str
    plugin: PluginUsed
    command: Sequence[str]
    environment: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class RunEnd:
    """How the plugin ended: its exit code, or None, the seconds that it took, its memory.

    If it ran on another machine, also that machine's name, and the versions there.
    """

    exit_code: int | None
    seconds: float | None
    peak_memory_bytes: int | None = None
    node: str | None = None
    versions: Mapping[str, str] | None = None


class Job(Record):
    """A job. Times are UTC (ISO 8601); `revision` grows with each change.

    `schema_version` is that of the pfms that made the record; the oldest records have none.
    `held` means that a plain blocking call waits for it, and that it is cancelled with its client.
    `attempts` counts starts, except those that an orderly stop of the server undid.
    `owner` is the name of the caller who made it; None if the server asked nobody who they are.
    `estimated_memory_bytes` is what its run was estimated to need; `peak_memory_bytes` is the most
    that one process of it held.
    `node` is the machine of a cluster that it ran on.
    `traceparent` (W3C) is that of the request that made it.
    `idempotency_key` is kept with the `fingerprint` of the request that it belongs to.
    """

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    id: str
    revision: int = Field(default=1, ge=1, le=2**62)  # SQLite has 64 bits
    state: State = "queued"
    created_at: str
    started_at: str | None = None
    ended_at: str | None = None
    purged_at: str | None = None
    model: ModelUsed
    volume: VolumeSent
    resultant: Resultant
    plugin: PluginUsed | None = None
    device: str | None = None
    executor: str | None = None
    node: str | None = None
    command: list[str] = Field(default_factory=list)
    environment: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    attempts: int = 0
    exit_code: int | None = None
    seconds: float | None = None
    estimated_memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    held: bool = False
    cancel_requested: bool = False
    rerun_of: str | None = None
    owner: str | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None
    traceparent: str | None = None
    warnings: list[str] = Field(default_factory=list)
    segmentation: Segmentation | None = None
    error: Cause | None = None

    @property
    def ended(self) -> bool:
        """Whether it has reached its final state."""
        return self.state in ENDED

    @property
    def logits(self) -> bool:
        """Whether the run makes the logits too."""
        return self.resultant == "logits"

    @property
    def bytes_kept(self) -> int:
        """What it counts towards its owner's limit: volume as sent and results, until a purge."""
        if self.purged_at is not None:
            return 0
        results = self.segmentation
        sizes = [results.size, *(each.size for each in results.files.values())] if results else []
        return self.volume.size + sum(sizes)

    # --- the steps that a job takes -----------------------------------------------------------

    def asked_to_cancel(self) -> "Job":
        """Someone asked to cancel it."""
        return self.changed(cancel_requested=True)

    def started(self, facts: RunFacts) -> "Job":
        """A run begins."""
        return self.moved(
            "running",
            attempts=self.attempts + 1,
            plugin=facts.plugin,
            device=facts.device,
            executor=facts.executor,
            command=list(facts.command),
            environment=dict(facts.environment),
            versions=dict(facts.versions),
            node=None,
        )

    def requeued(self, *, count_the_attempt: bool) -> "Job":
        """It waits again. Attempts are counted so that a job which kills its server is given up."""
        attempts = self.attempts if count_the_attempt else self.attempts - 1
        return self.moved("queued", device=None, attempts=attempts)

    def succeeded(
        self, end: RunEnd, segmentation: Segmentation, warnings: Sequence[str] = ()
    ) -> "Job":
        """It has a result that passed every check."""
        return self.moved(
            "succeeded",
            **self._facts_of(end),
            segmentation=segmentation,
            warnings=[*self.warnings, *warnings],
        )

    def failed(self, error: PfmsError, end: RunEnd | None = None) -> "Job":
        """There is no result. If it was interrupted, its Idempotency-Key can be used again."""
        key = None if isinstance(error, Interrupted) else self.idempotency_key
        return self.moved(
            "failed",
            **self._facts_of(end or RunEnd(None, None)),
            error=Cause.of(error),
            idempotency_key=key,
        )

    def _facts_of(self, end: RunEnd) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "exit_code": end.exit_code,
            "seconds": end.seconds,
            "peak_memory_bytes": end.peak_memory_bytes,
        }
        if end.node is not None and self.device is not None:
            # Its slot was a wish: Ray may have found room elsewhere.
            device = f"{end.node}/{self.device.rpartition('/')[2]}"
            facts |= {"node": end.node, "device": device, "versions": dict(end.versions or {})}
        return facts

    def cancelled(self, why: str) -> "Job":
        """It was ended on request; its Idempotency-Key can be used again."""
        cause = Cause.of(Cancelled(why))
        return self.moved("cancelled", error=cause, cancel_requested=True, idempotency_key=None)

    def purged(self) -> "Job":
        """Its voxels were removed."""
        return self.changed(purged_at=iso(utc_now()))

    def changed(self, **fields: Any) -> "Job":
        """A copy with other fields, the same state and the next revision."""
        if "state" in fields:
            raise ValueError("use moved() to change the state")
        return self._next(fields)

    def moved(self, state: State, **fields: Any) -> "Job":
        """A copy in another state, with its time noted, and the next revision.

        Raises:
            ValueError: The table does not allow this step: a bug in pfms.
        """
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"a job cannot go from {self.state} to {state}")
        now = iso(utc_now())
        times: dict[str, str | None] = {"ended_at": now}
        if state not in ENDED:
            times = {"started_at": now if state == "running" else None}
        return self._next({"state": state, **times, **fields})

    def _next(self, fields: dict[str, Any]) -> "Job":
        if unknown := fields.keys() - Job.model_fields:
            raise ValueError(f"a job has no field {', '.join(unknown)}")
        before = {**self.__dict__, **(self.model_extra or {})}
        return Job.model_validate({**before, **fields, "revision": self.revision + 1})
