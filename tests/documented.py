"""Every problem that a call answers with is one that the documentation of the call lists."""

import re
from functools import cache
from pathlib import Path

import httpx

from pfms.api.app import create_app
from pfms.settings import load_settings

CODE = re.compile(r"`([a-z-]+)`")
PLUGIN = Path(__file__).parent / "plugins" / "ok.py"

Codes = dict[str, set[str]]  # those of each status


@cache
def calls() -> list[tuple[str, re.Pattern[str], Codes]]:
    """Method, path and codes of every call in the document."""
    app = create_app(load_settings(plugin_command=str(PLUGIN), devices="cpu"))
    found = []
    for route, methods in app.openapi()["paths"].items():
        path = re.compile(re.sub(r"{[^}]+}", "[^/]+", route) + "/?")
        for method, call in methods.items():
            answers = call["responses"].items()
            codes = {status: set(CODE.findall(answer["description"])) for status, answer in answers}
            found.append((method.upper(), path, codes))
    return found


def check_documented(response: httpx.Response) -> None:
    """Look at an answer before the test does: one of httpx's event hooks."""
    request = response.request
    is_problem = response.headers.get("content-type") == "application/problem+json"
    if not is_problem or request.method == "HEAD":
        return
    response.read()
    path = request.url.path  # decoded, as the routes see it
    for method, pattern, codes in calls():
        if method == request.method and pattern.fullmatch(path):
            listed = codes.get(str(response.status_code), set())
            assert response.json()["code"] in listed, f"{method} {path} says {response.text}"
