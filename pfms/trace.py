"""What is being worked on: the job, and the W3C trace that its request belongs to.

https://www.w3.org/TR/trace-context/ has the form of `traceparent`.
"""

import re
import secrets
from contextvars import ContextVar

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

job_id: ContextVar[str | None] = ContextVar("job_id", default=None)
traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)


def valid(header: str | None) -> str | None:
    """A `traceparent` header in the form of version 00, or None if it is not valid."""
    found = _FORM.fullmatch(header or "")
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16):
        return None
    if not int(parent_id, 16):
        return None
    return f"00-{trace_id}-{parent_id}-{flags}"


def new() -> str:
    """A traceparent for a request that brings none: a new trace, not sampled elsewhere."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def trace_id() -> str | None:
    """The ID of the current trace."""
    current = traceparent.get()
    return current.split("-")[1] if current else None


def work_on(job: str, parent: str | None) -> None:
    """From now on, what this task logs is about a job and belongs to its trace."""
    job_id.set(job)
    traceparent.set(parent)
