"""Who may change something: programs, our own pages, and the origins that the settings name.

CORS only keeps a page of another origin from reading a response. It does not keep that page from
sending whatever a form can send.
"""

from fastapi.middleware.cors import CORSMiddleware
from starlette.requests import Request

from pfms.api.common import ServiceDep
from pfms.errors import Forbidden
from pfms.hosts import normal_origin


class NamedOrigins(CORSMiddleware):
    """CORS for the origins of the settings, however a client spells them."""

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether the settings name it; they hold origins in their normal form."""
        return _normal(origin) in self.allow_origins


async def check_origin(request: Request, service: ServiceDep) -> None:
    """Refuse a change requested by a page of another origin. Only browsers send an origin.

    Raises:
        Forbidden: The request asks for a change, and its origin is not named in the settings.
    """
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    sent = request.headers.getlist("origin")
    origins = [_normal(origin) for origin in sent]
    if origins and set(origins) <= set(service.settings.cors_origins):
        return
    site = request.headers.get("sec-fetch-site")  # proxies leave it as it is
    if site is None and sent:
        its_own = len(sent) == 1 and origins[0] is not None and origins[0] == _own(request, sent[0])
        site = "same-origin" if its_own else "cross-site"
    if site not in (None, "same-origin", "none"):
        shown = ", ".join(sent)[:200]
        raise Forbidden(f"The request comes from a page of {shown or 'another origin'}.")


def _normal(origin: str) -> str | None:
    """An origin in its normal form; None if a header holds something else."""
    try:
        return normal_origin(origin)
    except ValueError:
        return None


def _own(request: Request, origin: str) -> str | None:
    """The origin of our own pages. Where TLS ends at a proxy, only the browser knows the scheme."""
    scheme = origin.partition("://")[0]
    return _normal(f"{scheme}://{request.headers.get('host', '')}")
