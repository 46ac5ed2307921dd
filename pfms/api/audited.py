"""Tells the audit log of every call: who, from where, what, and how it was answered."""

from collections.abc import Iterable

from starlette.datastructures import QueryParams
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pfms.access.audit import AuditLog
from pfms.jobs.job import JOB_ID
from pfms.models.record import MODEL_ID

API = "/api/v1"
# Asked often, or the same for everyone: noted only if refused.
_OPEN = ("/health/", "/metrics", "/manual", "/page/")


class Audited:
    """ASGI middleware around the routes.

    Nothing that a client can choose freely is noted, since that may hold a patient's name: of a
    path its template, and IDs only if they are well-formed.

    Args:
        app: What is behind it.
        audit: Gets a line for each call.
        templates: The paths of the API, for calls that are refused before they reach a route.
    """

    def __init__(self, app: ASGIApp, audit: AuditLog, templates: Iterable[str]) -> None:
        self.app = app
        self._audit = audit
        self._patterns = {template: compile_path(template)[0] for template in templates}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note how it went."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        status: int | None = None
        job: str | None = None

        async def watched(message: Message) -> None:
            nonlocal status, job
            if message["type"] == "http.response.start":
                status = message["status"]
                named = [value for name, value in message["headers"] if name == b"x-pfms-job"]
                job = named[0].decode() if named else None
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self._note(scope, status, job)

    def _note(self, scope: Scope, status: int | None, job: str | None) -> None:
        state, path_params = scope["state"], scope.get("path_params", {})
        path = self._template(scope)
        if path is not None and path.startswith(_OPEN) and status is not None and status < 400:
            return
        asked = path_params.get("job_id", "")
        model = path_params.get("modelID") or QueryParams(scope["query_string"]).get("modelID", "")
        caller = state.get("caller")
        self._audit.write(
            "call",
            caller=caller.name if caller else None,
            address=scope["client"][0] if scope.get("client") else None,
            method=scope["method"],
            path=path,
            status=status,
            code=state.get("refusal"),
            job=job or (asked if JOB_ID.fullmatch(asked) else None),
            model=model if MODEL_ID.fullmatch(model) else None,
            **state.get("checksums", {}),
        )

    def _template(self, scope: Scope) -> str | None:
        """The path of the call, such as `/api/v1/jobs/{job_id}`; None if there is no such call."""
        asked = scope["path"].removeprefix(scope["root_path"])
        route: str | None = getattr(scope.get("route"), "path", None)
        if route is not None and not asked.startswith(f"{API}/"):
            return route
        for template, pattern in self._patterns.items():
            if pattern.match(asked.rstrip("/")):
                return template
        return None
