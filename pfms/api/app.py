"""`create_app(settings)`: wiring, no logic, and nothing that two apps would share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.utils import get_openapi

from pfms import __version__, errors
from pfms.api import jobs, manual, page, pages, problems, spleenseg, system
from pfms.api.access import Authentication, authenticators_of, describe_access, open_paths
from pfms.api.audited import Audited
from pfms.api.names import HostCheck, names_of
from pfms.api.origins import NamedOrigins, check_origin
from pfms.api.paths import Paths, paths_of
from pfms.api.schemas import Problem
from pfms.api.traces import Traces
from pfms.executors.base import Executor
from pfms.executors.choice import make_executor
from pfms.metrics import Metrics
from pfms.plugin.command import resolve_command
from pfms.service import Service
from pfms.settings import Settings

_DESCRIPTION = """Send a CT volume (NIfTI), get the spleen's segmentation (NIfTI).
Every refusal is `application/problem+json` with a `code` to test for and a `remedy` to follow."""


class _App(FastAPI):
    """FastAPI, whose OpenAPI document also describes the problem body that routes refer to."""

    def openapi(self) -> dict[str, object]:
        """The OpenAPI document."""
        if not self.openapi_schema:
            document = get_openapi(
                title=self.title,
                version=self.version,
                description=self.description,
                routes=self.routes,
            )
            for call in (call for calls in document["paths"].values() for call in calls.values()):
                # FastAPI adds this wherever a route has parameters and documents no 422 of its own.
                if "HTTPValidationError" in str(call["responses"].get("422")):
                    del call["responses"]["422"]
                for parameter in call.get("parameters", ()):
                    _drop_null(parameter["schema"])
            if self.state.asks_who_calls:
                describe_access(document, self.state.open_paths)
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            schemas["Problem"] = Problem.model_json_schema()
            self.openapi_schema = document
        return self.openapi_schema


def _drop_null(schema: dict[str, Any]) -> None:
    """Of a parameter that may be left out: nobody can send null in a query or a header."""
    match schema:
        case {"anyOf": [kind, {"type": "null"}]}:
            del schema["anyOf"]
            schema |= kind


def create_app(settings: Settings, executor: Executor | None = None) -> FastAPI:
    """Build the service and its HTTP face.

    Args:
        settings: What the operator has set.
        executor: Used instead of the one that the settings name.

    Raises:
        StartError: The plugin's command, a device or the tokens file is not there or not usable.
    """
    command = resolve_command(settings.plugin_command)
    authenticators = authenticators_of(settings)
    metrics = Metrics()
    executor = executor or make_executor(settings, command, metrics)
    service = Service(settings, command, executor, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = _App(
        title="pfms",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # pages.py serves its own, which needs no other host
        redoc_url=None,
        responses=problems.responses(),
        generate_unique_id_function=lambda route: route.name,  # the operationId
    )
    app.state.service = service
    app.state.page = page.PageFiles()
    app.state.asks_who_calls = settings.asks_who_calls
    app.state.open_paths = open_paths(settings)
    api = APIRouter(
        prefix="/api/v1",
        dependencies=[Depends(check_origin)],
        responses=problems.responses(errors.Unauthorized, errors.ForbiddenScope, errors.Forbidden),
    )
    routers = (spleenseg.router, jobs.router, system.router)
    for router in routers:
        api.include_router(router)
    app.include_router(api)
    app.include_router(system.health)
    app.include_router(system.metrics)
    app.include_router(page.router)
    app.include_router(pages.router)
    app.include_router(manual.router)
    if authenticators:
        app.add_middleware(
            Authentication, authenticators=authenticators, open_paths=open_paths(settings)
        )
    problems.install(app)
    # The last one added is the outermost.
    if settings.cors_origins:
        app.add_middleware(
            NamedOrigins,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Pfms-Job", "X-Pfms-Warning", "Location"],
        )
    app.add_middleware(HostCheck, names=names_of(settings))
    templates = [api.prefix + path for router in routers for path in paths_of(router)]
    app.add_middleware(Audited, audit=service.audit, templates=templates)
    app.add_middleware(Paths, root_path=settings.root_path)
    app.add_middleware(Traces, spans=service.spans)
    return app
