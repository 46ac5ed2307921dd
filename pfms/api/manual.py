"""The manual at `/manual`: a site of static files that `make docs` builds from docs/."""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

router = APIRouter(prefix="/manual", include_in_schema=False)

FOLDER = Path(__file__).parent.parent / "manual"

# Its own scripts, styles and search index, and icons that its style sheet has within itself. The
# search makes a style sheet of its own while it runs.
_POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # revalidated by ETag: another version may be built in its place
}
_NOT_BUILT = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>pfms: the manual</title>'
    "<h1>The manual was not built</h1><p>Run <code>make docs</code> in the clone of pfms that this "
    "server runs from; it need not be started again. The same pages are in the folder "
    "<code>docs</code> of the clone.</html>"
)


def is_built() -> bool:
    """Whether there is a manual to show."""
    return FOLDER.is_dir()


@router.get("")
async def show_manual(request: Request) -> Response:
    """Its first page, whose links need its own folder in the URL."""
    return RedirectResponse(f"{request.scope['root_path']}/manual/index.html")


@router.get("/{name:path}")
async def show_file_of_manual(request: Request, name: str) -> Response:
    """One of its files."""
    if not is_built():
        return HTMLResponse(_NOT_BUILT, 404, headers=_HEADERS)
    response = await StaticFiles(directory=FOLDER).get_response(name, request.scope)
    response.headers.update(_HEADERS)
    return response
