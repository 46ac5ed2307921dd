"""About the service and its machine."""

import asyncio
import os
import platform
import socket
from typing import Annotated

import psutil
from fastapi import APIRouter, Query, Request, Response
from prometheus_client.exposition import choose_encoder

from pfms import __version__, errors
from pfms.api.common import TEXT, ServiceDep
from pfms.api.problems import NotFound, responses
from pfms.api.schemas import About, Echo, Live, Ready, Sys, SysInfo

router = APIRouter(tags=["system"])
metrics = APIRouter(tags=["system"])
health = APIRouter(prefix="/health", tags=["system"])

_ABOUT = "Spleen segmentation over HTTP, around the ChRIS plugin pl-monai_spleenseg"


@router.get("/about")
async def about() -> About:
    """The name and version of the service."""
    return About(name="pfms", about=_ABOUT, version=__version__)


@router.get("/sysinfo", responses=responses(errors.InvalidParameter))
async def sysinfo(echoBack: Annotated[str, Query(max_length=5000)] = "") -> Sys:
    """Facts about the machine, and `echoBack` echoed."""
    return Sys(
        name="pfms",
        version=__version__,
        sysinfo=await asyncio.to_thread(_sysinfo),
        echoBack=Echo(msg=echoBack),
    )


def _sysinfo() -> SysInfo:
    memory = psutil.virtual_memory()
    return SysInfo(
        system=platform.system(),
        machine=platform.machine(),
        uname=list(platform.uname()),
        platform=platform.platform(),
        version=platform.version(),
        availablememory=memory.available,
        freememory=memory.free,
        cpucount=os.cpu_count() or 1,
        loadavg=list(os.getloadavg()),
        cpu_percent=psutil.cpu_percent(),
        hostname=socket.gethostname(),
        inet=_inet(),
    )


def _inet() -> str:
    """The address at which others reach this machine; connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: no machine has this address
            address: str = probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
        return address


@health.get("/live")
async def live() -> Live:
    """The process answers."""
    return Live()


@health.get(
    "/ready",
    responses={**responses(), 503: {"description": "what is missing", "model": Ready}},
)
async def ready(service: ServiceDep, response: Response) -> Ready:
    """Whether a run would start now, and if not, what is missing."""
    missing = await service.missing()
    if missing:
        response.status_code = 503
    return Ready(status="not ready" if missing else "ready", missing=missing)


@metrics.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "in the text format of Prometheus, or OpenMetrics if `Accept` names it",
            "content": {"text/plain": TEXT},
        },
        **responses(NotFound, errors.Unauthorized),
    },
)
async def show_metrics(request: Request, service: ServiceDep) -> Response:
    """What Prometheus collects; docs/observing.md explains each metric."""
    if service.settings.metrics == "off":
        raise NotFound
    await service.measure()
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    text = await asyncio.to_thread(encode, service.metrics.registry)
    return Response(text, headers={"Content-Type": media_type})
