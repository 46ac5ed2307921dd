"""The W3C `traceparent` of a request: taken over or made, and answered."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pfms import trace

HEADER = "traceparent"


class Traces:
    """ASGI middleware, the outermost: what happens within a request belongs to its trace."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on. A header that is not valid is ignored, as the standard has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).getlist(HEADER)
        parent = (trace.valid(sent[0]) if len(sent) == 1 else None) or trace.new()
        # Each request has a context of its own: its last lines in the log need them as well.
        trace.traceparent.set(parent)
        trace.job_id.set(None)

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[HEADER] = parent
                trace.job_id.set(headers.get("x-pfms-job"))  # for the line in the access log
            await send(message)

        await self.app(scope, receive, send_on)
