"""The bodies, as the API's documentation shows them."""

from pathlib import PurePath
from typing import Literal

from pydantic import BaseModel, Field

from pfms.clock import iso, utc_now
from pfms.jobs import job as records
from pfms.jobs.archive import JobStatus
from pfms.jobs.job import CHRIS_STATUS, State
from pfms.plugin.types import Progress, Resultant, Stage


class Problem(BaseModel):
    """RFC 9457, with a `code` to test for and a `remedy` to follow."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    remedy: str
    job: str | None = None


class ModelStored(BaseModel):
    """`sha256` and `size` (bytes) are of what is stored, `upload_sha256` of what was sent."""

    status: Literal[True] = True
    message: str
    location: str = Field(description="relative to the workspace")
    modelID: str
    sha256: str
    upload_sha256: str
    size: int
    warnings: list[str]


class ModelList(BaseModel):
    """The model IDs, sorted."""

    models: list[str]


class ModelInfo(BaseModel):
    """One model. `uploaded_at` is UTC, `size` in bytes."""

    modelID: str
    sha256: str
    upload_sha256: str
    size: int
    uploaded_at: str
    source: str
    warnings: list[str]


class Devices(BaseModel):
    """Where runs go: the first device, and all of them."""

    device: str
    devices: list[str]


class About(BaseModel):
    """The name and version of the service."""

    name: str
    about: str
    version: str


class SysInfo(BaseModel):
    """The machine. Memory in bytes, CPU in percent since the last such call."""

    system: str
    machine: str
    uname: list[str]
    platform: str
    version: str
    availablememory: int
    freememory: int
    cpucount: int
    loadavg: list[float]
    cpu_percent: float
    hostname: str
    inet: str


class Echo(BaseModel):
    """The text of the query's `echoBack`."""

    msg: str


class Sys(BaseModel):
    """The machine, and an echo."""

    name: str
    version: str
    sysinfo: SysInfo
    echoBack: Echo


class ProgressView(BaseModel):
    """How far a job has got.

    `fraction` (0 to 1) is of the whole run, by the time that each stage of recent runs took. `done`
    and `total` are of the stage: windows of the network while `inferring`, otherwise per cent; null
    if unknown. `elapsed` and `expected` (from recent runs of the model) are in seconds.
    """

    stage: Literal["waiting", Stage, "ended"]
    fraction: float | None = None
    done: int | None = None
    total: int | None = None
    elapsed: float | None = None
    expected: float | None = None

    @classmethod
    def of(cls, status: JobStatus) -> "ProgressView":
        """What is known about a job's progress."""
        if status.job.ended:
            return cls(stage="ended", fraction=1.0 if status.job.state == "succeeded" else None)
        if status.job.state == "queued":
            return cls(stage="waiting", fraction=0.0, expected=status.expected)
        progress = status.progress or Progress("loading")
        return cls(
            stage=progress.stage,
            fraction=status.fraction,
            done=progress.done,
            total=progress.total,
            elapsed=round(status.elapsed or 0.0, 3),
            expected=status.expected,
        )


# A record may hold fields that this pfms does not know; clients see the documented ones.


class ModelUsed(records.ModelUsed, extra="ignore"):
    """The weights of a run, as they were when the job was accepted."""


class VolumeSent(records.VolumeSent, extra="ignore"):
    """The volume, as it was uploaded.

    `size` in bytes and `sha256` are of the upload; `shape` (x, y, z), `spacing` in mm;
    `minimum` and `maximum` are of the scaled voxels; `scaled` says whether they differ from the
    stored ones (null for jobs of an older pfms).
    """


class Segmentation(records.Segmentation, extra="ignore"):
    """The outcome. `voxels_sha256` is of the labels' bytes, unpacked, in file order."""


class Cause(records.Cause, extra="ignore"):
    """Why there is no result."""


class JobView(BaseModel):
    """One job. Times are UTC (ISO 8601); the job at `place` 0 runs next."""

    id: str
    state: State
    chris_status: str
    created_at: str
    started_at: str | None
    ended_at: str | None
    purged_at: str | None
    progress: ProgressView
    place: int | None
    estimated_start: str | None
    model: ModelUsed
    volume: VolumeSent
    resultant: Resultant
    device: str | None
    executor: str | None
    node: str | None = Field(description="the machine of a cluster that it ran on")
    command: list[str]
    versions: dict[str, str]
    attempts: int
    seconds: float | None = Field(description="what the run took, from start to end")
    estimated_memory_bytes: int | None = Field(
        description="what its run was estimated to need, before it began"
    )
    peak_memory_bytes: int | None = Field(
        description="the most memory that one process of the run held (resident pages, also those "
        "that it shares with the process it was forked from)"
    )
    cancel_requested: bool
    rerun_of: str | None
    traceparent: str | None = Field(description="of the request that made it (W3C)")
    owner: str | None = Field(description="who made it, where callers have names")
    warnings: list[str]
    segmentation: Segmentation | None
    error: Cause | None
    folder: str = Field(description="relative to the workspace")

    @classmethod
    def of(cls, status: JobStatus) -> "JobView":
        """What a client sees."""
        job = status.job
        shared = job.model_dump(include=set(cls.model_fields) & set(records.Job.model_fields))
        # The server's paths stay in job.json; a client sees only the names of files.
        shared["command"] = [PurePath(word).name for word in job.command]
        return cls(
            **shared,
            chris_status=CHRIS_STATUS[job.state],
            progress=ProgressView.of(status),
            place=status.place,
            estimated_start=status.estimated_start,
            folder=f"jobs/{job.id}",
        )


class JobPage(BaseModel):
    """Jobs, newest first; `next` is the cursor of the next page, null on the last."""

    jobs: list[JobView]
    next: str | None


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """What is missing, by name, each with a sentence about it; docs/api.md has the names."""

    status: Literal["ready", "not ready"]
    missing: dict[str, str]
    at: str = Field(default_factory=lambda: iso(utc_now()))
