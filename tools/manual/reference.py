"""The parts of the manual that are made from the code: every call, and every error."""

import inspect
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pfms.api.app import create_app
from pfms.api.pages import type_in_words
from pfms.api.problems import ANYWHERE, STATUS
from pfms.errors import PfmsError
from pfms.executors.fresh import FreshExecutor
from pfms.settings import load_settings

# What a real server answered to the examples; `make pictures` writes it.
ANSWERS = Path(__file__).resolve().parents[2] / "docs" / "answers.json"
SERVER = "http://127.0.0.1:2024"
# What the examples put into a path or a query.
VALUES = {"modelID": "demo", "job_id": "$JOB", "device": "cpu", "echoBack": "hello"}
# What an example adds to a call where it shows more than the bare call.
_ALSO = {
    "upload_model": "-F file=@model.pth",
    "infer": "--fail-with-body -F file=@ct.nii.gz -o spleen.nii.gz",
    "follow_job": "--no-buffer",
    "show_result": "--fail-with-body -o spleen.nii.gz",
    "show_volume": "--fail-with-body -o ct.nii.gz",
    "show_preview": "--fail-with-body -o preview.png",
    "show_bundle": "--fail-with-body -o bundle.zip",
}
_QUERIES = {"list_jobs": "?state=succeeded&limit=1", "remove_job": "?purge=voxels"}
# Where the manual says more about an error.
_MEMORY, _RUNS = "[Memory](operating.md#memory)", "[Debug a run](debugging.md)"
_FAILURES = "[Stops and failures](operating.md#stops-and-failures)"
_NEEDS = "[What it needs](deploying.md#what-it-needs)"
_TOKENS = "[Who may call](operating.md#who-may-call)"
_MORE = {
    "bad-result": _RUNS,
    "disk-full": _FAILURES,
    "forbidden-scope": _TOKENS,
    "gone": "[The workspace](operating.md#the-workspace)",
    "gpu-out-of-memory": _RUNS,
    "idempotency-mismatch": "[Never twice](curl.md#never-twice)",
    "interrupted": _FAILURES,
    "no-device": _NEEDS,
    "no-memory": _MEMORY,
    "no-shared-memory": _NEEDS,
    "not-a-model": "[Bring a model](models.md#bring-one)",
    "not-ready": "[About the service](api.md#about-the-service)",
    "out-of-memory": f"{_MEMORY}, {_RUNS}",
    "plugin-failed": _RUNS,
    "timed-out": _RUNS,
    "too-many-connections": _FAILURES,
    "too-many-requests": "[Limits of callers](operating.md#limits-of-callers)",
    "unauthorized": f"{_TOKENS}, [The token of a client](operating.md#the-token-of-a-client)",
    "wrong-host": "[Names](operating.md#names)",
}

Call = Mapping[str, Any]


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document of a server with the default settings."""
    # Any command will do: nothing is started.
    settings = load_settings(plugin_command=str(Path(__file__)), devices="cpu")
    return create_app(settings, FreshExecutor()).openapi()


def operations() -> list[tuple[str, str, Call]]:
    """Method, path and description of every call."""
    return [
        (method.upper(), path, call)
        for path, methods in document()["paths"].items()
        for method, call in methods.items()
    ]


def example(method: str, path: str, call: Call) -> str:
    """A line of curl that makes a call."""
    name = call["operationId"]
    query = [
        f"{each['name']}={VALUES[each['name']]}"
        for each in call.get("parameters", [])
        if each["in"] == "query" and (each["required"] or each["name"] in ("echoBack",))
    ]
    asked = f"?{'&'.join(query)}" if query else _QUERIES.get(name, "")
    for value in VALUES:
        path = path.replace(f"{{{value}}}", VALUES[value])
    verb = "" if method == "GET" or "requestBody" in call else f"-X {method}"
    words = " ".join(filter(None, ["curl", verb, _ALSO.get(name, "")]))
    gap = " \\\n    " if len(words) > 8 else " "  # the line would be too long
    return f'{words}{gap}"{SERVER}{path}{asked}"'


def calls() -> str:
    """Every call as Markdown: what it takes, what it answers, and an example."""
    return "\n\n".join(_call(*each) for each in operations()) + "\n\n" + _bodies()


def errors() -> str:
    """Every error as Markdown: its status, when it occurs, what to do, which calls answer it."""
    return "\n\n".join(_error(kind) for kind in sorted(STATUS, key=lambda kind: kind.code))


def _error(kind: type[PfmsError]) -> str:
    text = "A bug in pfms itself." if kind is PfmsError else inspect.getdoc(kind)
    calls = [each for each in operations() if each[1].startswith("/api/")]
    answered = [
        f"[`{method} {path}`](reference.md#{call['operationId']})"
        for method, path, call in calls
        if any(f"`{kind.code}`" in answer["description"] for answer in call["responses"].values())
    ]
    if kind in ANYWHERE:
        where = "Any call can answer with it."
    elif len(answered) == len(calls):
        where = "Any call below `/api/v1` can answer with it."
    elif answered:
        where = f"Calls that can answer with it: {', '.join(answered)}."
    else:
        where = ""
    return (
        f"## `{kind.code}` {{ #{kind.code} }}\n\n"
        f"Status {STATUS[kind]}: {kind.title}.\n\n{text}\n\n"
        f"**What to do:** {kind.remedy}\n\n{where}"
        + (f" See also {_MORE[kind.code]}." if kind.code in _MORE else "")
    )


def _call(method: str, path: str, call: Call) -> str:
    takes = [
        (
            f"`{each['name']}` ({each['in']})",
            type_in_words(each["schema"]) + (", required" if each["required"] else ""),
            each.get("description", ""),
        )
        for each in call.get("parameters", [])
    ]
    for kind, content in call.get("requestBody", {}).get("content", {}).items():
        takes += [
            (f"`{name}` (field of {kind})", type_in_words(schema), schema.get("description", ""))
            for name, schema in content["schema"]["properties"].items()
        ]
    answers = [
        (status, _contents(answer), _linked(answer["description"]))
        for status, answer in sorted(call["responses"].items())
    ]
    return "\n\n".join(
        (
            f"## `{method} {path}` {{ #{call['operationId']} }}",
            call["description"],
            f"```sh\n{example(method, path, call)}\n```",
            _answer(call["operationId"]),
            _table(("it takes", "type", ""), takes),
            _table(("it answers", "body", ""), answers),
        )
    )


def _answer(name: str) -> str:
    answer = json.loads(ANSWERS.read_text()).get(name)
    return f"```json\n{json.dumps(answer, indent=2)}\n```" if answer else ""


def _contents(answer: Mapping[str, Any]) -> str:
    found = []
    for kind, content in answer.get("content", {}).items():
        name = type_in_words(content.get("schema", {}))
        is_body = name in document()["components"]["schemas"]
        found.append(f"[{name}](#{name.lower()})" if is_body else kind)
    return ", ".join(found)


def _linked(text: str) -> str:
    """A description with its error codes as links to their sections."""
    for kind in STATUS:
        text = text.replace(f"`{kind.code}`", f"[`{kind.code}`](errors.md#{kind.code})")
    return text


def _bodies() -> str:
    found = ["# The bodies"]
    for name, body in sorted(document()["components"]["schemas"].items()):
        rows = [
            (f"`{field}`", type_in_words(schema), schema.get("description", ""))
            for field, schema in body["properties"].items()
        ]
        found += [f"## {name}", body.get("description", ""), _table(("field", "type", ""), rows)]
    return "\n\n".join(found)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(_cell(each) for each in row)} |" for row in rows]
    top = [f"| {' | '.join(head)} |", "|---|---|---|"]
    return "\n".join([*top, *lines]) if lines else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
