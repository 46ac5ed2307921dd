"""Who calls: asked before anything of a body is read, and compared with what the call needs."""

import base64
import binascii
from typing import Any

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as RequestScope

from pfms.access.authenticator import Authenticator, Credentials
from pfms.access.caller import Caller, Scope
from pfms.access.tokens import TokensFile
from pfms.api.common import CallerDep
from pfms.api.problems import problem_response
from pfms.errors import ForbiddenScope, PfmsError, Unauthorized
from pfms.settings import Settings

_OPEN = ("/health", "/docs", "/manual", "/page", "/openapi.json")  # and the page itself, at /


def authenticators_of(settings: Settings) -> tuple[Authenticator, ...]:
    """The ways to find out who calls, in the order in which they are asked; none: nobody is asked.

    Raises:
        StartError: One of them cannot be used.
    """
    found: list[Authenticator] = []
    if settings.tokens_file:
        found.append(TokensFile(settings.tokens_file))
    if settings.oidc_issuer or settings.oidc_audience:
        from pfms.access.oidc import Issuer  # an HTTP client, which others need not load

        found.append(
            Issuer(settings.oidc_issuer, settings.oidc_audience, settings.oidc_scopes_claim)
        )
    return tuple(found)


def open_paths(settings: Settings) -> tuple[str, ...]:
    """The paths that need no token, and neither does any path below them."""
    return (*_OPEN, "/metrics") if settings.metrics == "open" else _OPEN


def needs(*scopes: Scope) -> Any:
    """A dependency of calls for which a caller needs one of these scopes.

    Raises:
        ForbiddenScope: The caller has none of them.
    """

    async def check(caller: CallerDep) -> None:
        if not any(caller.may(scope) for scope in scopes):
            had = ", ".join(sorted(caller.scopes)) or "no scope"
            raise ForbiddenScope(f"It needs the scope {' or '.join(scopes)}; the token has {had}.")

    return Depends(check)


class Authentication:
    """ASGI middleware that lets only known callers through, and notes who they are.

    Args:
        app: What is behind it.
        authenticators: Asked in this order.
        open_paths: Those that need no token, without a proxy's prefix.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticators: tuple[Authenticator, ...],
        open_paths: tuple[str, ...],
    ) -> None:
        self.app = app
        self._authenticators = authenticators
        self._open = open_paths

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Pass a request on with its caller, or refuse it."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http" and not _is_below(path, self._open):
            try:
                caller = await self._caller(Headers(scope=scope).getlist("authorization"))
            except PfmsError as error:
                await problem_response(error, Request(scope))(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, send)

    async def _caller(self, headers: list[str]) -> Caller:
        credentials = _credentials(headers)
        for authenticator in self._authenticators:
            caller = await authenticator.caller(credentials)
            if caller is not None:
                return caller
        raise Unauthorized("The server does not know this token.")


def describe_access(document: dict[str, Any], open_paths: tuple[str, ...]) -> None:
    """Say in an OpenAPI document how calls carry a token."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "a token"},
        "basic": {
            "type": "http",
            "scheme": "basic",
            "description": "the token as the password, with any user name",
        },
    }
    for path, calls in document["paths"].items():
        for call in () if _is_below(path, open_paths) else calls.values():
            call["security"] = [{"bearer": []}, {"basic": []}]


def _is_below(path: str, roots: tuple[str, ...]) -> bool:
    return path == "/" or any(path == root or path.startswith(f"{root}/") for root in roots)


def _credentials(headers: list[str]) -> Credentials:
    """What the `Authorization` header holds.

    Raises:
        Unauthorized: There is none, or it is of another kind.
    """
    if not headers:
        raise Unauthorized("The request carries no token.")
    if len(headers) > 1:
        raise Unauthorized("The request has more than one Authorization header.")
    scheme, _, value = headers[0].strip().partition(" ")
    token = value.strip()
    if scheme.lower() == "basic":
        token = _password(token)
    elif scheme.lower() != "bearer":
        raise Unauthorized("The Authorization header is neither Bearer nor Basic.")
    if not token:
        raise Unauthorized("The Authorization header carries no token.")
    return Credentials(token)


def _password(encoded: str) -> str:
    try:
        decoded = base64.b64decode(encoded, validate=True).decode("latin-1")
    except (binascii.Error, ValueError):
        raise Unauthorized("The Authorization header is not proper HTTP Basic.") from None
    return decoded.partition(":")[2]
