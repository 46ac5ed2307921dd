"""Jobs: their state and results, and how to cancel, remove and rerun them."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from sse_starlette import EventSourceResponse, ServerSentEvent

from pfms import errors
from pfms.api.access import needs
from pfms.api.common import (
    BINARY,
    HEADERS,
    LOCATION,
    TEXT,
    CallerDep,
    JobDep,
    ServiceDep,
    job_headers,
    job_location,
)
from pfms.api.downloads import (
    NIFTI,
    OpenedFileResponse,
    picture,
    resultant_file,
    unless_known,
    volume_file,
)
from pfms.api.problems import responses
from pfms.api.refusals import QUEUE, RESULT
from pfms.api.schemas import JobPage, JobView
from pfms.jobs.events import Event
from pfms.jobs.job import State
from pfms.plugin.types import Resultant
from pfms.service import Service
from pfms.volumes.planes import MOST_SLICES, Plane, Wanted

router = APIRouter(prefix="/jobs", tags=["jobs"], dependencies=[needs("infer")])

_HEARTBEAT_SECONDS = 15
_CHUNK = 1 << 16
_EVENT_ID = re.compile("[0-9]{1,18}")
_PARTS: dict[int | str, dict[str, Any]] = {
    206: {"description": "a range of it", "content": {NIFTI: BINARY}},
    304: {"description": "the client already has it (If-None-Match)"},
    416: {"description": "the range lies outside the file", "content": {"text/plain": TEXT}},
}


@router.get("", responses=responses(errors.InvalidParameter))
async def list_jobs(
    service: ServiceDep,
    caller: CallerDep,
    state: State | None = None,
    modelID: str | None = None,
    volume: Annotated[str | None, Query(description="SHA-256 of the volume that was sent")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> JobPage:
    """The caller's jobs, newest first, in pages; all jobs for `admin`."""
    found, following = await service.archive.page(
        seen_by=caller, limit=limit, cursor=cursor, state=state, model_id=modelID, volume=volume
    )
    return JobPage(jobs=[JobView.of(status) for status in found], next=following)


@router.get("/{job_id}", responses=responses(errors.JobNotFound))
async def show_job(service: ServiceDep, job: JobDep, response: Response) -> JobView:
    """Everything that is known about a job."""
    status = service.archive.status_of(job)
    response.headers.update(job_headers(status.job))
    return JobView.of(status)


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses={
        200: {"description": "server-sent events", "content": {"text/event-stream": {}}},
        204: {"description": "the job has ended, and the client has seen every event"},
        **responses(errors.JobNotFound, errors.InvalidParameter),
    },
)
async def follow_job(
    service: ServiceDep, job: JobDep, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """Every change of state and progress; with `Last-Event-ID`, only later ones.

    The stream ends after the last event of a job that has ended.
    """
    known = _EVENT_ID.fullmatch(last_event_id or "")
    after = int(known[0]) if known else 0
    if job.ended and after and not await service.archive.events(job.id, after):
        return Response(status_code=204, headers=job_headers(job))
    return EventSourceResponse(
        _stream(service, job.id, after), ping=_HEARTBEAT_SECONDS, headers=job_headers(job)
    )


async def _stream(service: Service, job_id: str, after: int) -> AsyncIterator[ServerSentEvent]:
    async for event in service.events(job_id, after):
        yield _server_sent(event)


def _server_sent(event: Event) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(event.data), event=event.kind, id=str(event.n))


@router.get(
    "/{job_id}/log",
    response_class=Response,
    responses={
        200: {"description": "stdout and stderr of the plugin", "content": {"text/plain": TEXT}},
        **responses(errors.JobNotFound),
    },
)
async def show_log(service: ServiceDep, job: JobDep) -> Response:
    """What the plugin has printed so far."""
    file = await service.archive.log(job.id)
    if file is None:
        return Response("", media_type="text/plain", headers=job_headers(job))

    async def chunks() -> AsyncIterator[bytes]:
        with file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                yield chunk

    return StreamingResponse(chunks(), media_type="text/plain", headers=job_headers(job))


@router.get(
    "/{job_id}/result",
    response_class=Response,
    responses={
        200: {
            "description": "the resultant",
            "content": {NIFTI: BINARY},
            "headers": HEADERS,
        },
        **_PARTS,
        **responses(errors.JobNotFound, *RESULT, errors.InvalidParameter),
    },
)
async def show_result(
    service: ServiceDep,
    job: JobDep,
    resultant: Resultant = "labels",
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The resulting NIfTI, with ETag and ranges."""
    return unless_known(await resultant_file(service.archive, job, resultant), if_none_match)


@router.get(
    "/{job_id}/volume",
    response_class=Response,
    responses={
        200: {
            "description": "the volume, gzipped NIfTI",
            "content": {NIFTI: BINARY},
            "headers": HEADERS,
        },
        **_PARTS,
        **responses(errors.JobNotFound, errors.Gone),
    },
)
async def show_volume(
    service: ServiceDep, job: JobDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """The volume that was sent, in any state of the job, with ETag and ranges.

    It is what the plugin gets: gzipped if it was sent plain, without the name of a file, header
    extensions or bytes after the last voxel, and with the header put right where a warning says so.
    """
    return unless_known(await volume_file(service.archive, job), if_none_match)


@router.get(
    "/{job_id}/preview.png",
    response_class=Response,
    responses={
        200: {
            "description": "slices through the spleen",
            "content": {"image/png": BINARY},
            "headers": HEADERS,
        },
        304: _PARTS[304],
        **responses(errors.JobNotFound, *RESULT, errors.InvalidParameter),
    },
)
async def show_preview(
    service: ServiceDep,
    job: JobDep,
    plane: Annotated[Plane | None, Query(description="one plane; by default, all three")] = None,
    slice: Annotated[
        int | None,
        Query(ge=0, description="its number, from inferior, posterior or the patient's left"),
    ] = None,
    mosaic: Annotated[
        int | None,
        Query(ge=2, le=MOST_SLICES, description="how many slices; axial ones without `plane`"),
    ] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Slices through the largest part of the spleen with the labels drawn on them, with ETag.

    Where no spleen was found, slices through the middle of the volume.
    """
    wanted = Wanted(plane, slice, mosaic)
    wanted.check(job.volume.shape, job.volume.orientation)
    return await picture(service.archive, job, wanted, if_none_match)


@router.get(
    "/{job_id}/bundle",
    response_class=Response,
    responses={
        200: {"description": "a zip", "content": {"application/zip": BINARY}},
        **responses(
            errors.JobNotFound,
            errors.JobNotFinished,
            errors.Gone,
            errors.InvalidParameter,
        ),
    },
)
async def show_bundle(service: ServiceDep, job: JobDep, voxels: bool = False) -> Response:
    """Command, record and log in a zip; with `voxels` also input, result and weights."""
    file = await service.archive.bundle(job.id, voxels=voxels)
    return OpenedFileResponse(
        file,
        filename=f"{job.id}.zip",
        media_type="application/zip",
        headers=job_headers(job),
    )


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    response_model=JobView,
    responses={
        200: {"description": "it had already ended", "model": JobView},
        **responses(errors.JobNotFound),
    },
)
async def cancel_job(service: ServiceDep, job: JobDep, response: Response) -> JobView:
    """Cancel a job. Its record stays."""
    if job.ended:
        response.status_code = 200
    else:
        await service.cancel(job.id)
    status = await service.archive.status(job.id)
    response.headers.update(job_headers(status.job))
    return JobView.of(status)


@router.delete(
    "/{job_id}",
    status_code=204,
    responses=responses(errors.JobNotFound, errors.JobActive, errors.InvalidParameter),
)
async def remove_job(
    service: ServiceDep,
    job: JobDep,
    purge: Annotated[Literal["voxels"] | None, Query(description="keep record and log")] = None,
) -> None:
    """Remove an ended job; with `purge=voxels`, only its volumes and weights."""
    if purge is None:
        await service.archive.remove(job.id)
    else:
        await service.archive.purge(job.id)


@router.post(
    "/{job_id}/rerun",
    status_code=202,
    response_model=JobView,
    responses={
        202: {"description": "accepted; Location names the new job", "headers": HEADERS | LOCATION},
        **responses(
            errors.JobNotFound,
            errors.InvalidParameter,
            errors.UnsupportedNifti,
            errors.NoMemory,
            errors.Gone,
            *QUEUE,
        ),
    },
)
async def rerun_job(
    request: Request,
    service: ServiceDep,
    caller: CallerDep,
    job: JobDep,
    response: Response,
    resultant: Resultant | None = None,
) -> JobView:
    """Start a new job with the same volume, weights and options."""
    new = await service.intake.rerun(job, resultant, caller)
    response.headers.update({**job_headers(new), "Location": job_location(request, new)})
    return JobView.of(await service.archive.status(new.id))
