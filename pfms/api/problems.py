"""The one table from error to `application/problem+json` (RFC 9457)."""

import errno
import logging
import math
import os
import sqlite3
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pfms import errors
from pfms.api.paths import methods_of
from pfms.api.schemas import Problem

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
DOCS = "/docs/errors"

STATUS: dict[type[errors.PfmsError], int] = {
    errors.PfmsError: 500,
    errors.InvalidParameter: 422,
    errors.MissingModelID: 422,
    errors.InvalidModelID: 422,
    errors.Unauthorized: 401,
    errors.ForbiddenScope: 403,
    errors.Forbidden: 403,
    errors.WrongHost: 421,
    errors.MissingFile: 422,
    errors.UnsupportedCoding: 415,
    errors.RequestTimeout: 408,
    errors.HeadersTooLarge: 431,
    errors.IdempotencyMismatch: 422,
    errors.NotAModel: 422,
    errors.NotANifti: 422,
    errors.TruncatedNifti: 422,
    errors.UnsupportedNifti: 422,
    errors.TooLarge: 413,
    errors.NoMemory: 422,  # the upload is not too large: 413 would say so
    errors.ModelNotFound: 404,
    errors.JobNotFound: 404,
    errors.JobNotFinished: 409,
    errors.JobFailed: 409,
    errors.JobActive: 409,
    errors.ResultantNotMade: 409,
    errors.Gone: 410,
    errors.QueueFull: 503,
    errors.TooManyRequests: 429,
    errors.DiskFull: 507,
    errors.NotReady: 503,
    errors.NoDevice: 503,
    errors.TooManyConnections: 503,
    errors.Interrupted: 503,
    errors.PluginFailed: 500,
    errors.BadResult: 500,
    errors.OutOfMemory: 500,
    errors.GpuOutOfMemory: 500,
    errors.NoSharedMemory: 500,
    errors.TimedOut: 504,
    errors.Cancelled: 409,
}
_CLIENT_LEFT = 499  # nginx's status for it
_RETRY_SECONDS = 30  # for a 429 or 503 that has no estimate of its own
_BEARER, _BASIC = 'Bearer realm="pfms"', 'Basic realm="pfms", charset="UTF-8"'


class NotFound(errors.RequestError):
    """No call has this path."""

    code = "not-found"
    title = "There is nothing at this path"
    remedy = "GET /docs shows every call."


class MethodNotAllowed(errors.RequestError):
    """The path exists, but not with this method."""

    code = "method-not-allowed"
    title = "This path does not accept this method"
    remedy = "The Allow header names those it accepts; GET /docs shows every call."


STATUS |= {NotFound: 404, MethodNotAllowed: 405}

# Problems of any call: a wrong Host (names.py), too large a head or too many connections
# (wire.py), and whatever the operating system refuses.
ANYWHERE: tuple[type[errors.PfmsError], ...] = (
    errors.PfmsError,
    errors.WrongHost,
    errors.HeadersTooLarge,
    errors.TooManyConnections,
    errors.NotReady,
    errors.DiskFull,
)


def problem(
    error: errors.PfmsError,
    path: str,
    root_path: str = "",
    headers: dict[str, str] | None = None,
    status: int | None = None,
) -> JSONResponse:
    """The response that reports `error`.

    Args:
        error: What happened.
        path: Of the request, percent-encoded.
        root_path: PFMS_ROOT_PATH, before the links to the documentation.
        headers: Further ones to send.
        status: Instead of the one that the table has for this kind of error.
    """
    status = status or STATUS[type(error)]
    body = Problem(
        type=f"{root_path}{DOCS}#{error.code}",
        title=error.title,
        status=status,
        detail=error.detail,
        instance=path,
        code=error.code,
        remedy=error.remedy,
        job=error.job,
    )
    headers = dict(headers or {})
    if error.job:
        headers["X-Pfms-Job"] = error.job
    if status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or _RETRY_SECONDS)))
    if status == 415:
        headers["Accept-Encoding"] = "identity"
    if status == 408:
        headers["Connection"] = "close"
    response = JSONResponse(
        body.model_dump(exclude_none=True), status, headers=headers, media_type=MEDIA_TYPE
    )
    if status == 401:
        response.headers.append("WWW-Authenticate", _BEARER)
        response.headers.append("WWW-Authenticate", _BASIC)
    return response


def problem_response(
    error: errors.PfmsError, request: Request, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The response to a request that reports `error`."""
    scope = request.scope
    request.app.state.service.metrics.refused(error.code)
    request.state.refusal = error.code
    response = problem(error, quote(scope["path"]), scope["root_path"], headers)
    if response.status_code == 401 and "x-requested-with" in request.headers:
        # A script of a page: for Basic, the browser would open a window of its own.
        response.headers["WWW-Authenticate"] = _BEARER
    return response


def responses(*kinds: type[errors.PfmsError]) -> dict[int | str, dict[str, Any]]:
    """What a route's documentation says about the problems that it may return."""
    by_status: dict[int | str, dict[str, Any]] = {}
    every: dict[type[errors.PfmsError], None] = dict.fromkeys((*kinds, *ANYWHERE))
    for kind in every:
        status = STATUS[kind]
        entry = by_status.setdefault(
            status,
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        )
        text = f"`{kind.code}`: {kind.title}."
        entry["description"] = f"{entry['description']} {text}".strip()
        if status == 503:
            entry["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
        if status == 401:
            entry["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
        if status == 415:
            entry["headers"] = {"Accept-Encoding": {"schema": {"type": "string"}}}
    return by_status


def _of_validation(error: RequestValidationError) -> errors.PfmsError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "missing" and place == ["query", "modelID"]:
        return errors.MissingModelID()
    return errors.InvalidParameter(f"{' '.join(place)}: {first['msg']}.")


def _methods_of(request: Request) -> list[str]:
    """What the path accepts: Starlette's own Allow knows only the first of the routes on a path."""
    path = request.scope["path"].removeprefix(request.scope["root_path"])
    found = methods_of(path, request.app.routes)
    return ["HEAD", *found] if "GET" in found else found


# Errors that only a bug of ours can cause.
_BUGS = (errno.EBADF, errno.EINVAL, errno.EFAULT)
# SQLite's errors that come from the disk; a wrong statement is SQLITE_ERROR, and `internal`.
_SQLITE_ON_DISK = ("SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_BUSY")


def _of_system(error: BaseException | None) -> errors.PfmsError:
    """The problem for an error of the operating system or SQLite: its words, but no path.

    Any other error is `internal`.
    """
    reason = None
    while error is not None and reason is None:
        if isinstance(error, OSError) and error.errno and error.errno not in _BUGS:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return errors.DiskFull("The disk of the server ran full.")
            reason = os.strerror(error.errno)
        elif isinstance(error, sqlite3.Error):
            name = getattr(error, "sqlite_errorname", "")
            if name == "SQLITE_FULL":
                return errors.DiskFull("The disk of the server ran full.")
            reason = str(error) if name.startswith(_SQLITE_ON_DISK) else None
        error = error.__cause__
    if reason is None:
        return errors.PfmsError()
    return errors.NotReady(
        f"The server could not use its files: {reason}.",
        "Tell the operator of this server: GET /health/ready and the server's log say more.",
    )


class UnexpectedErrors:
    """ASGI middleware around the routes that logs unexpected errors and responds to them.

    Starlette by itself raises the error again after its response, and uvicorn then cuts the
    connection: a client that is still sending its volume would not see the response.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            log.exception("%s %s", scope["method"], scope["path"])
            await problem_response(_of_system(error), Request(scope))(scope, receive, send)


def install(app: FastAPI) -> None:
    """Give every error of `app` this form."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, errors.PfmsError)  # noqa: S101  (registered for it)
        if error.code == errors.PfmsError.code:
            log.error("%s: %s", request.scope["path"], error.detail)
        return problem_response(error, request)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return problem_response(_of_validation(error), request)

    async def framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101
        headers = dict(error.headers or {})
        if error.status_code == 404:
            return problem_response(NotFound(), request, headers)
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods_of(request))
            return problem_response(MethodNotAllowed(), request, headers)
        return problem_response(errors.InvalidParameter(str(error.detail)), request, headers)

    async def left(request: Request, error: Exception) -> Response:
        log.info("%s: the client went away", request.scope["path"])
        return Response(status_code=_CLIENT_LEFT)  # nobody receives it

    async def internal(request: Request, error: Exception) -> JSONResponse:
        # In the middleware itself. Starlette raises the error again, which logs its traceback.
        return problem_response(errors.PfmsError(), request)

    app.add_exception_handler(errors.PfmsError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(Exception, internal)
    app.add_middleware(UnexpectedErrors)
