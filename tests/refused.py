"""What every refusal has to be, and what it may not leave."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx

from tests.conftest import Server

INFER = "/spleenseg/NIfTIinference"
MODELPTH = "/spleenseg/modelpth"


def files_of(server: Server) -> set[Path]:
    """All that a request could leave behind."""
    folders = (server.workspace / name for name in ("jobs", "uploads", "models"))
    return {path for folder in folders for path in folder.rglob("*")}


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
