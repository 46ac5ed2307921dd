"""What applies to every path: a proxy's prefix, the trailing slash, HEAD wherever there is GET."""

from collections.abc import Iterable

import anyio
from fastapi import APIRouter
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "POST", "PUT", "DELETE")


class Paths:
    """ASGI middleware in front of the routes.

    A proxy that serves pfms under a prefix may strip the prefix from a path or keep it: both lead
    to the same route. `/path/` is handled as `/path`, without a redirect, since proxies break
    redirects. HEAD is a GET that is stopped once the head of its response has been sent, so that
    it reads no file and follows no events.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self._root = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if len(path) > 1 and path.endswith("/"):
            path = path.rstrip("/") or "/"
        if self._root and not self._has_prefix(path, scope["app"].routes):
            path = self._root + path
        elif path == self._root:
            path = f"{path}/"  # the page
        # In place, so that the outermost handler, which reports unexpected errors, sees it too.
        scope.update(path=path, root_path=self._root)
        if scope["method"] == "HEAD":
            await self._head({**scope, "method": "GET"}, receive, send)
        else:
            await self.app(scope, receive, send)

    def _has_prefix(self, path: str, routes: Iterable[BaseRoute]) -> bool:
        if not f"{path}/".startswith(f"{self._root}/"):
            return False
        # Our own paths may begin with the prefix, too, if it is one such as /api.
        return bool(
            methods_of(path.removeprefix(self._root), routes) or not methods_of(path, routes)
        )

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def send_head(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    group.cancel_scope.cancel()

            await self.app(scope, receive, send_head)


def methods_of(path: str, routes: Iterable[BaseRoute]) -> list[str]:
    """The methods that a path (without a proxy's prefix) accepts; empty if nothing is there."""
    scope = {"type": "http", "root_path": "", "headers": [], "path": path}
    return [
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]


def paths_of(router: APIRouter) -> list[str]:
    """The paths of a router's calls, as templates."""
    return [route.path for route in router.routes if isinstance(route, Route)]
