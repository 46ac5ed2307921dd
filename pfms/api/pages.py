"""The documentation as web pages that load nothing from elsewhere: many hospitals are offline.

They need no build, unlike the manual (manual.py), to which they link. `/docs` is the OpenAPI
document for people, `/docs/errors` is what a problem's `type` links to, `/docs/try` is Swagger UI.
"""

import inspect
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse

from pfms.api import manual
from pfms.api.problems import DOCS, STATUS

router = APIRouter(prefix="/docs", include_in_schema=False)

# The browser, too, holds these pages to loading nothing from elsewhere.
_NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_POLICY = f"{_NOTHING_ELSE}; style-src 'unsafe-inline'"
_POLICY_OF_TRY = (
    f"{_NOTHING_ELSE}; script-src 'self' 'sha256-{{}}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'"
)
_SWAGGER_UI = Path(str(files("fastapi_swagger"))) / "resources"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; font-size: 1.1rem }
:target { background: #fff3c4 }
code { background: #f3f3f3; overflow-wrap: anywhere }
table { border-collapse: collapse; margin: .5rem 0 }
td, th { border-top: 1px solid #ccc; padding: .2rem .8rem .2rem 0; text-align: left;
         vertical-align: top }
"""


@router.get("")
async def show_calls(request: Request) -> HTMLResponse:
    """Every call, with its parameters and its responses."""
    document: dict[str, Any] = request.app.openapi()
    calls = [
        _call(f"{method.upper()} {path}", call)
        for path, methods in document["paths"].items()
        for method, call in methods.items()
    ]
    bodies = [
        _heading(name, name) + _text(body.get("description", "")) + _fields(body)
        for name, body in sorted(document["components"]["schemas"].items())
    ]
    intro = (
        _text(document["info"]["description"])
        + f"<p>{_link(request, '/openapi.json')} is the same for programs, "
        f"{_link(request, DOCS)} explains the problems, "
        f"{_link(request, '/docs/try')} (Swagger UI) calls the service from the browser.</p>"
    )
    if manual.is_built():
        intro += f"<p>{_link(request, '/manual/index.html')} is the manual.</p>"
    return _page("pfms: every call", [intro, *calls, "<h1>The bodies</h1>", *bodies])


@router.get("/errors")
async def show_errors(request: Request) -> HTMLResponse:
    """Every problem by its code: when it occurs, and what to do about it."""
    more = f'<a href="{request.scope["root_path"]}/manual/errors.html#{{}}">In the manual</a>'
    sections = [
        _heading(kind.code, kind.code)
        + f"<p>{STATUS[kind]}: {escape(kind.title)}.</p>"
        + _text(inspect.getdoc(kind) if kind.code != "internal" else "A bug in pfms itself.")
        + f"<p><b>What to do:</b> {_marked(kind.remedy)}</p>"
        + (more.format(kind.code) if manual.is_built() else "")
        for kind in STATUS
    ]
    intro = (
        "<p>A refusal is <code>application/problem+json</code> (RFC 9457). Programs test its "
        f"<code>code</code>; its <code>type</code> links here. {_link(request, '/docs')} shows "
        "every call.</p>"
    )
    return _page("pfms: the problems", [intro, *sections])


@router.get("/try")
async def try_calls(request: Request) -> HTMLResponse:
    """Swagger UI, which makes the calls from the browser."""
    root = request.scope["root_path"]
    options = {
        "url": f"{root}/openapi.json",
        "dom_id": "#swagger-ui",
        "deepLinking": True,
        "validatorUrl": None,  # another host
    }
    script = f"SwaggerUIBundle({json.dumps(options)})"
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>pfms: try it</title>'
        f'<link rel="stylesheet" href="{root}/docs/try/swagger-ui.css"></head>'
        '<body><div id="swagger-ui"></div>'
        f'<script src="{root}/docs/try/swagger-ui-bundle.js"></script>'
        f"<script>{script}</script></body></html>"
    )
    policy = _POLICY_OF_TRY.format(b64encode(sha256(script.encode()).digest()).decode())
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


@router.get("/try/{name}")
async def show_file_of_swagger_ui(
    name: Literal["swagger-ui.css", "swagger-ui-bundle.js"],
) -> FileResponse:
    """What the page above loads."""
    return FileResponse(_SWAGGER_UI / name)


def _link(request: Request, path: str) -> str:
    return f'<a href="{request.scope["root_path"]}{path}">{path}</a>'


def _page(title: str, parts: Iterable[str]) -> HTMLResponse:
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    body = f"<h1>{title}</h1>{''.join(parts)}"
    html = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'
    return HTMLResponse(html, headers={"Content-Security-Policy": _POLICY})


def _call(name: str, call: Mapping[str, Any]) -> str:
    takes = [
        (
            f"{parameter['name']} ({parameter['in']})",
            type_in_words(parameter["schema"]) + (", required" if parameter["required"] else ""),
            parameter.get("description", ""),
        )
        for parameter in call.get("parameters", [])
    ]
    for kind, content in call.get("requestBody", {}).get("content", {}).items():
        takes += [
            (f"{field} (field of {kind})", type_in_words(schema), schema.get("description", ""))
            for field, schema in content["schema"]["properties"].items()
        ]
    answers = [
        (status, ", ".join(map(_content, answer.get("content", {}).items())), answer["description"])
        for status, answer in sorted(call["responses"].items())
    ]
    text = _text(call["description"])
    return _heading(call["operationId"], name) + text + _table(takes) + _table(answers)


def _content(content: tuple[str, Mapping[str, Any]]) -> str:
    kind, body = content
    name = type_in_words(body.get("schema", {}))
    return kind if name in ("", "string (binary)") else f"{kind}: {name}"


def _fields(body: Mapping[str, Any]) -> str:
    return _table(
        (name, type_in_words(schema), schema.get("description", ""))
        for name, schema in body["properties"].items()
    )


def type_in_words(schema: Mapping[str, Any]) -> str:
    """The type that a schema describes, in words; its name if it is one of the bodies."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(type_in_words(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        text = " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    else:
        text = str(schema.get("type", ""))
    if "format" in schema:
        text += f" ({schema['format']})"
    if isinstance(schema.get("items"), dict):
        text += f" of {type_in_words(schema['items'])}"
    return f"{text}; default {schema['default']}" if schema.get("default") else text


def _heading(anchor: str, text: str) -> str:
    return f'<h2 id="{escape(anchor)}"><code>{escape(text)}</code></h2>'


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    lines = [
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td>"
        f"<td>{_marked(description)}</td></tr>"
        for name, kind, description in rows
    ]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def _text(text: str | None) -> str:
    return "".join(f"<p>{_marked(part)}</p>" for part in (text or "").split("\n\n") if part)


def _marked(text: str) -> str:
    """A text as HTML, with what is in `backticks` as code."""
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(text))
