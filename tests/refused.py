"""What every refusal has to be, and what it may not leave."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx

from tests.conftest import Server, eventually, nifti_bytes
from tests.wire import FORM, Answer, form, part

INFER = "/spleenseg/NIfTIinference"
MODELPTH = "/spleenseg/modelpth"
TARGET = f"/api/v1{INFER}?modelID=demo"
BODY = form(part(nifti_bytes()))


def files_of(server: Server) -> set[Path]:
    """All that a request could leave behind."""
    folders = (server.workspace / name for name in ("jobs", "uploads", "models"))
    return {path for folder in folders for path in folder.rglob("*")}


def jobs_made(server: Server) -> list[Path]:
    """The jobs there are once nothing is being received.

    A request that was refused on the wire may begin, and drop, its upload after its answer.
    """
    eventually(lambda: not server.uploads())
    return server.job_folders()


def check(answer: httpx.Response, status: int, code: str, server: Server) -> dict[str, Any]:
    """The answer is a problem as RFC 9457 and the contract have it."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["type"].endswith(f"#{code}")
    assert unquote(problem["instance"]) == answer.url.path.rstrip("/")
    for name in ("title", "detail", "remedy"):
        assert problem[name]
    for text in (str(server.workspace), "Traceback", "/site-packages/", "/tests/"):
        assert text not in answer.text
    return problem


def refused(server: Server, status: int, code: str, path: str = INFER, **request: Any) -> str:
    """POST, check the problem, and that nothing is left; its detail."""
    before, jobs = files_of(server), server.http.get("/jobs").json()
    params = {"modelID": "demo"} | request.pop("params", {})
    problem = check(server.http.post(path, params=params, **request), status, code, server)
    assert "job" not in problem
    assert files_of(server) == before
    assert server.http.get("/jobs").json() == jobs
    detail: str = problem["detail"]
    return detail


def request(
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "POST",
    target: str = TARGET,
    body: bytes = BODY,
    chunked: bool = False,
) -> bytes:
    """A whole request as bytes; with a body it is a form."""
    headers = dict(headers or {})
    if body:
        headers["Content-Type"] = FORM
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
            middle = len(body) // 2
            pieces = (body[:middle], body[middle:])
            body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
        else:
            headers["Content-Length"] = str(len(body))
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def is_problem(answer: Answer, status: int, code: str) -> dict[str, Any]:
    assert (answer.status, answer.json()["code"]) == (status, code), answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["type"].endswith(f"#{code}")
    for name in ("title", "detail", "remedy", "instance"):
        assert problem[name]
    assert "Traceback" not in answer.body.decode()
    return problem
