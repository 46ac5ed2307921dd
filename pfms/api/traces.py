"""The W3C `traceparent` of a request: taken over or made, and answered."""

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pfms import trace
from pfms.spans import Spans

HEADER = "traceparent"


class Traces:
    """ASGI middleware, the outermost: what happens within a request belongs to its trace."""

    def __init__(self, app: ASGIApp, spans: Spans) -> None:
        self.app = app
        self._spans = spans

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

        begun = 0.0
        job: str | None = None

        async def send_on(message: Message) -> None:
            nonlocal begun, job
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[HEADER] = parent
                begun, job = time.monotonic(), headers.get("x-pfms-job")
                trace.job_id.set(job)  # for the line in the access log
            await send(message)

        await self.app(scope, receive, send_on)
        if job is not None:  # what was sent is about a job, or its result
            trace.job_id.set(job)  # a response that is streamed has another context
            self._spans.passed("send", time.monotonic() - begun)
