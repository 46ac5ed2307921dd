"""The calls that clients of FNNDSC's pfms, and the plugin's own remote mode, rely on."""

import asyncio
import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.requests import ClientDisconnect

from pfms import errors
from pfms.api.access import needs
from pfms.api.common import (
    BINARY,
    HEADERS,
    LOCATION,
    CallerDep,
    ServiceDep,
    job_headers,
    job_location,
)
from pfms.api.downloads import NIFTI, resultant_file
from pfms.api.multipart import OPENAPI_BODY, announced_size, check_body, receive_file
from pfms.api.problems import responses
from pfms.api.refusals import MODEL_IN_PATH, MODEL_IN_QUERY, QUEUE, RUN, UPLOAD, VOLUME
from pfms.api.schemas import Devices, JobView, ModelInfo, ModelList, ModelStored
from pfms.jobs.intake import InferenceRequest
from pfms.jobs.job import Job
from pfms.models.record import MODEL_ID, valid_model_id
from pfms.plugin.types import Resultant
from pfms.service import Service

router = APIRouter(prefix="/spleenseg", tags=["spleenseg"])

# The pattern is shown, not enforced: `valid_model_id` explains better what is wrong.
_SHOWN = {"pattern": f"^{MODEL_ID.pattern}$"}
ModelID = Annotated[str, Query(examples=["demo"], json_schema_extra=_SHOWN)]
ModelIDInPath = Annotated[str, Path(examples=["demo"], json_schema_extra=_SHOWN)]
_PREFER = "`respond-async`: 202 at once; `wait=N`: 200 if done within N seconds, else 202"
_KEY = "a repeat joins the first job, or gets its outcome"
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?")


@router.post(
    "/modelpth",
    dependencies=[needs("models")],
    openapi_extra=OPENAPI_BODY,
    responses=responses(*MODEL_IN_QUERY, *UPLOAD, errors.NotAModel),
)
async def upload_model(
    request: Request, service: ServiceDep, caller: CallerDep, modelID: ModelID
) -> ModelStored:
    """Store weights (a `.pth`) under a model ID, replacing any model with that ID."""
    model_id = valid_model_id(modelID)
    boundary = check_body(request, service.settings.max_upload_bytes)
    async with service.intake.receiving("model", announced_size(request), caller) as writer:
        with service.spans.span("receive"):
            upload = await receive_file(request, boundary, writer, service.settings.idle_seconds)
        model = await service.add_model(model_id, upload)
    request.state.checksums = {"model_sha256": model.sha256, "upload_sha256": model.upload_sha256}
    return ModelStored(
        message=f"the model is stored as {model_id!r}",
        location=f"models/{model_id}/model.pth",
        **model.to_dict() | {"modelID": model_id},
    )


@router.get("/modelpth", dependencies=[needs("infer", "models")])
async def list_models(service: ServiceDep) -> ModelList:
    """The IDs of all models."""
    return ModelList(models=await asyncio.to_thread(service.models.names))


@router.get(
    "/modelpth/{modelID}",
    dependencies=[needs("infer", "models")],
    responses=responses(*MODEL_IN_PATH),
)
async def show_model(service: ServiceDep, modelID: ModelIDInPath) -> ModelInfo:
    """Everything that is known about a model."""
    model = await asyncio.to_thread(service.models.get, modelID)
    return ModelInfo.model_validate(model.to_dict())


@router.delete(
    "/modelpth/{modelID}",
    dependencies=[needs("models")],
    status_code=204,
    responses=responses(*MODEL_IN_PATH),
)
async def remove_model(service: ServiceDep, modelID: ModelIDInPath) -> None:
    """Remove a model. Jobs that were accepted with it keep its weights until they end."""
    await asyncio.to_thread(service.models.remove, modelID)


@router.post(
    "/NIfTIinference",
    dependencies=[needs("infer")],
    response_class=Response,
    openapi_extra=OPENAPI_BODY,
    responses={
        200: {
            "description": "the resultant",
            "content": {NIFTI: BINARY},
            "headers": HEADERS,
        },
        202: {
            "description": "accepted; Location names the job",
            "model": JobView,
            "headers": {
                **HEADERS,
                **LOCATION,
                "Preference-Applied": {"schema": {"type": "string"}},
            },
        },
        **responses(
            *MODEL_IN_QUERY,
            errors.ModelNotFound,
            *UPLOAD,
            *VOLUME,
            errors.IdempotencyMismatch,
            *QUEUE,
            errors.Interrupted,
            *RUN,
            errors.Gone,
            errors.ResultantNotMade,
        ),
    },
)
async def infer(
    request: Request,
    service: ServiceDep,
    caller: CallerDep,
    modelID: ModelID,
    resultant: Resultant = "labels",
    prefer: Annotated[
        str | None, Header(examples=["respond-async", "wait=1"], description=_PREFER)
    ] = None,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=257, description=_KEY)
    ] = None,
) -> Response:
    """Segment a CT volume (NIfTI). Blocks until it is done, unless `Prefer` says otherwise."""
    model_id = valid_model_id(modelID)
    key = _key(idempotency_key)
    # `prefer` is for the document: it has one line, and a client may send several.
    respond_async, seconds = _preference(request.headers.getlist("prefer"))
    blocks = not respond_async and seconds is None  # for as long as it takes
    boundary = check_body(request, service.settings.max_upload_bytes)
    asked = InferenceRequest(
        model_id, resultant, held=blocks and key is None, key=key, owner=caller.name
    )
    size = announced_size(request)
    async with (
        service.intake.place(caller, size, model_id=model_id, key=key) as place,
        service.intake.receiving("volume", size, caller) as writer,
    ):
        with service.spans.span("receive"):
            upload = await receive_file(request, boundary, writer, service.settings.idle_seconds)
        job = await service.intake.submit(upload, asked, place)

    if not respond_async:
        job = await _wait(request, service, job, seconds)
    if not job.ended:
        return await _accepted(
            request, service, job, "respond-async" if respond_async else f"wait={seconds}"
        )
    if job.error is not None:
        raise job.error.error(job.id)
    return await resultant_file(service.archive, job, resultant)


async def _accepted(request: Request, service: Service, job: Job, preference: str) -> Response:
    view = JobView.of(await service.archive.status(job.id))
    location = {"Location": job_location(request, job), "Preference-Applied": preference}
    return Response(
        view.model_dump_json(),
        202,
        headers={**job_headers(job), **location},
        media_type="application/json",
    )


async def _wait(request: Request, service: Service, job: Job, seconds: float | None) -> Job:
    """Wait for a job's end, at most `seconds`. A held job is cancelled when its client leaves."""
    ends = asyncio.create_task(service.wait(job.id, seconds))
    leaves = asyncio.create_task(_client_leaves(request))
    try:
        await asyncio.wait({ends, leaves}, return_when=asyncio.FIRST_COMPLETED)
        if ends.done():
            try:
                return ends.result()
            except errors.Interrupted:
                if seconds is None:
                    raise
                return job  # it asked for a response within some time, not for the end
        if job.held:
            await service.client_went_away(job.id)
        raise ClientDisconnect
    finally:
        ends.cancel()
        leaves.cancel()


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _preference(headers: list[str]) -> tuple[bool, int | None]:
    """Whether `respond-async` is preferred, and the N of `wait=N` (RFC 7240)."""
    preferences = [
        preference.partition(";")[0].strip().lower()
        for header in headers
        for preference in header.split(",")
    ]
    waits = [int(match[1]) for each in preferences if (match := _WAIT.fullmatch(each))]
    seconds = waits[0] if waits else None
    # RFC 7240 allows both: then the server waits first.
    return "respond-async" in preferences and seconds is None, seconds


def _key(header: str | None) -> str | None:
    if header is None:
        return None
    key = header.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 1 <= len(key) <= 255:
        raise errors.InvalidParameter("Idempotency-Key must have 1 to 255 characters.")
    return key


@router.get("/inference/device", responses=responses(errors.NoDevice))
async def show_device(service: ServiceDep) -> Devices:
    """Where runs go."""
    if not service.devices:
        raise errors.NoDevice("No node of the cluster can run the plugin now.")
    return Devices(device=service.devices[0], devices=list(service.devices))


@router.put(
    "/inference/device/{device}",
    dependencies=[needs("admin")],
    responses=responses(errors.InvalidParameter),
)
async def set_device(
    service: ServiceDep, device: Annotated[str, Path(examples=["auto"])]
) -> Devices:
    """Send runs to a device from now on, across restarts; `auto` returns to the setting."""
    devices = await service.set_devices(device)
    return Devices(device=devices[0], devices=list(devices))
