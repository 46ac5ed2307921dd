"""Who may ask for a change: programs, our own pages, and the origins that the settings name.

CORS alone keeps another page from reading an answer, and not from sending what a form can send.
"""

from urllib.parse import urlsplit

from starlette.requests import Request

from pfms.api.answers import Uses
from pfms.errors import Forbidden


async def check_origin(request: Request, service: Uses) -> None:
    """Refuse what a browser says that a page of another origin sends; programs say nothing of it.

    Raises:
        Forbidden: It asks for a change, and its origin is not named in the settings.
    """
    origin = request.headers.get("origin")
    if request.method in ("GET", "HEAD", "OPTIONS") or origin in service.settings.cors_origins:
        return
    site = request.headers.get("sec-fetch-site")  # which a proxy leaves as it is
    if site is None and origin is not None:
        its_own = urlsplit(origin).netloc == request.headers.get("host")
        site = "same-origin" if its_own else "cross-site"
    if site not in (None, "same-origin", "none"):
        raise Forbidden(f"A page of {origin or 'another origin'} asked for it.")
