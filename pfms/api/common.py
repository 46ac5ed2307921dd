"""What the routes share: the service they ask, and the headers of a job."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi import Path as InPath

from pfms.access.caller import ANYONE, Caller
from pfms.jobs.job import JOB_ID, Job
from pfms.service import Service

# Shown, not enforced: a malformed ID is a job that does not exist, 404 like any other.
JobID = Annotated[
    str,
    InPath(
        examples=["2026-01-31-12-00-00-f81d4fae-7dec-41d0-a765-00a0c91e6bf6"],
        json_schema_extra={"pattern": f"^{JOB_ID.pattern}$"},
    ),
]

HEADERS = {
    "X-Pfms-Job": {"schema": {"type": "string"}, "description": "the job's ID"},
    "X-Pfms-Warning": {"schema": {"type": "string"}, "description": "where there is one"},
}
TEXT = {"schema": {"type": "string"}}
BINARY = {"schema": {"type": "string", "format": "binary"}}
LOCATION = {"Location": {"schema": {"type": "string"}, "description": "of the job"}}


async def _service(request: Request) -> Service:  # a plain function would run in a thread
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]


async def _caller(request: Request) -> Caller:
    caller: Caller = getattr(request.state, "caller", ANYONE)
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]


async def _job(service: ServiceDep, caller: CallerDep, job_id: JobID) -> Job:
    return await service.archive.job(job_id, seen_by=caller)


# The job in the path. Every route below /jobs/{job_id} takes it from here, and so asks who calls.
JobDep = Annotated[Job, Depends(_job)]


def job_headers(job: Job) -> dict[str, str]:
    """The headers of every response about an accepted run."""
    headers = {"X-Pfms-Job": job.id}
    if job.warnings:
        headers["X-Pfms-Warning"] = "; ".join(job.warnings).encode("ascii", "replace").decode()
    return headers


def job_location(request: Request, job: Job) -> str:
    """The path of a job, for `Location`."""
    return f"{request.scope['root_path']}/api/v1/jobs/{job.id}"
