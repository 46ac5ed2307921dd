"""What can go wrong between a client and a server, and what of it passes."""

from typing import Any

import httpx

Json = dict[str, Any]

_NOT_NOW = (429, 503)
_GATEWAYS = frozenset({"http-502", "http-503", "http-504"})  # in words that are not those of pfms


class ClientError(Exception):
    """What went wrong between this client and a server.

    Attributes:
        detail: What is wrong, one sentence.
        remedy: What to do about it, one sentence; may be empty.
        job: The ID of the job it belongs to, if any.
    """

    def __init__(self, detail: str, remedy: str = "", job: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.job = job


class Unreachable(ClientError):
    """Nothing answers there, or it stopped answering."""

    code = "unreachable"


class PfmsProblem(ClientError):
    """The server refused, or the run failed.

    Attributes:
        code: The stable name that programs test for, such as `model-not-found`.
        status: Of the HTTP response; None if it is a job that failed.
        retry_after: Seconds after which trying again is sensible, if the server says so.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        remedy: str = "",
        status: int | None = None,
        job: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail, remedy, job)
        self.code = code
        self.status = status
        self.retry_after = retry_after


def problem_in(response: httpx.Response) -> PfmsProblem:
    """The problem that a response, whose body is read, is about."""
    status = response.status_code
    after = response.headers.get("Retry-After", "")
    seconds = float(after) if after.isdigit() else None
    try:
        body = response.json()
        return PfmsProblem(
            body["code"], body["detail"], body.get("remedy", ""), status, body.get("job"), seconds
        )
    except (ValueError, KeyError, TypeError):
        words = " ".join(response.text.split())[:200] or response.reason_phrase
        return PfmsProblem(
            f"http-{status}",
            f"the server answered {status}: {words}",
            "This is not how pfms answers: is the address right?",
            status,
            retry_after=seconds,
        )


def problem_of(job: Json) -> PfmsProblem:
    """Why a job has no result."""
    error = job["error"]
    return PfmsProblem(error["code"], error["detail"], error["remedy"], None, job["id"])


def is_away(error: ClientError) -> bool:
    """Whether the server does not answer, as during a restart."""
    return isinstance(error, Unreachable) or (
        isinstance(error, PfmsProblem) and error.code in _GATEWAYS
    )


def is_busy(error: ClientError) -> bool:
    """Whether the server asks to try again later."""
    return (
        isinstance(error, PfmsProblem)
        and error.status in _NOT_NOW
        and error.retry_after is not None
    )
