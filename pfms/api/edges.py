"""What holds for every path: the trailing slash, and HEAD wherever there is GET."""

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Edges:
    """ASGI middleware in front of the routes.

    `/path/` is `/path`, directly: proxies break redirects. HEAD is GET whose handler is stopped
    when the head of its answer is out, so that it reads no file and follows no events.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if len(path) > 1 and path.endswith("/"):
            scope = {**scope, "path": path.rstrip("/") or "/"}
        if scope["method"] == "HEAD":
            await self._head({**scope, "method": "GET"}, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def send_head(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    group.cancel_scope.cancel()

            await self.app(scope, receive, send_head)
