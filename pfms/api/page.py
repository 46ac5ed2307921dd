"""The page at `/`: its files, and the policy that keeps it from every other host.

The files lie in `pfms/page/` and are held in memory. Those in `vendor/`, the viewer NiiVue, are
fetched with npm (tools/viewer). Without them the page shows the server's previews, and says why.
"""

import asyncio
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePath

from fastapi import APIRouter, Request, Response

from pfms.api.problems import NotFound

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent.parent / "page"

_INDEX = "index.html"
_VIEWER = "vendor/niivue.js"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".txt": "text/plain"}
# Scripts, styles and calls of this server alone, and no script or HTML that is made from a text.
# Pictures are fetched with the token, and so come from `blob:`; NiiVue has its letters and shading
# within itself, as `data:`. It needs no `wasm-unsafe-eval`: only its reader of Zarr, which is never
# called, has WebAssembly.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_NOSNIFF = {"X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


@dataclass(frozen=True)
class _Files:
    """What lay in the folder; `version` is a hash of it all, `signature` its names and times."""

    signature: list[tuple[str, int, int]]
    version: str
    by_name: Mapping[str, _File]


class PageFiles:
    """The files of the page, read again when one of them has changed."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._read: _Files | None = None

    def now(self) -> _Files:
        """The files as they are. It looks at each of them: not on the event loop."""
        with self._lock:
            paths = sorted(path for path in self._folder.rglob("*.*") if path.suffix in _TYPES)
            stats = [(path, path.stat()) for path in paths]
            signature = [(str(path), stat.st_mtime_ns, stat.st_size) for path, stat in stats]
            if self._read is None or self._read.signature != signature:
                files = {str(path.relative_to(self._folder)): _file(path) for path in paths}
                whole = "".join(f"{name}{file.etag}" for name, file in files.items())
                self._read = _Files(signature, _digest(whole.encode()), files)
            return self._read


def _file(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _TYPES[path.suffix], f'"{_digest(content)}"')


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:20]


async def _files(request: Request) -> _Files:
    page: PageFiles = request.app.state.page
    return await asyncio.to_thread(page.now)


@router.get("/")
async def show_page(request: Request) -> Response:
    """The page."""
    files = await _files(request)
    root = escape(request.scope["root_path"])
    place = f"{root}/page/{files.version}"
    # All at once, so that the browser need not find one import after the other.
    modules = [n for n in files.by_name if PurePath(n).suffix == ".js" and "/" not in n]
    text = files.by_name[_INDEX].content.decode()
    for word, value in {
        "{root}": root,
        "{place}": place,
        "{viewer}": "yes" if _VIEWER in files.by_name else "no",
        "{modules}": "".join(f'<link rel="modulepreload" href="{place}/{n}">' for n in modules),
    }.items():
        text = text.replace(word, value)
    headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"}
    file = _File(text.encode(), "text/html", f'"{_digest(text.encode())}"')
    return _answer(request, file, {**headers, "Cache-Control": "no-cache"})


@router.get("/page/{version}/{name:path}")
async def show_file_of_page(request: Request, version: str, name: str) -> Response:
    """What the page loads. Its address changes with its content, so browsers may keep it."""
    files = await _files(request)
    file = files.by_name.get(name)
    if file is None or name == _INDEX:
        raise NotFound
    # Of another version, as while servers behind a balancer are being replaced.
    lasting = "public, max-age=31536000, immutable" if version == files.version else "no-cache"
    return _answer(request, file, {"Cache-Control": lasting})


def _answer(request: Request, file: _File, headers: Mapping[str, str]) -> Response:
    headers = {**headers, **_NOSNIFF, "ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
