"""The names by which the server may be called.

A page of evil.example can make its own name resolve to this machine (DNS rebinding). The browser
then takes the responses for ones of the page's own origin, and lets the page read them. Such a
request carries `Host: evil.example`, so names that are not the server's are refused. IP addresses
and `localhost` do not come from an attacker's DNS, and always pass.
"""

import logging
import socket
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from pfms.api.problems import problem_response
from pfms.errors import WrongHost
from pfms.hosts import host_of, is_address
from pfms.settings import Settings

log = logging.getLogger(__name__)

ANY = "*"
_LOCAL = ("localhost", "*.localhost")  # RFC 6761: names that never reach DNS


def names_of(settings: Settings) -> frozenset[str]:
    """The names of the server; `*.example.org` is any name below it, `*` any name at all."""
    if settings.hostnames:
        return frozenset((*_LOCAL, *settings.hostnames))
    host = settings.host.lower()
    if not is_address(host):
        return frozenset((*_LOCAL, host, *_names_of_machine()))
    if ip_address(host).is_loopback:
        return frozenset(_LOCAL)
    if not ip_address(host).is_unspecified:
        return frozenset((*_LOCAL, *_names_of_machine()))
    # A container, or a machine on several networks, cannot know the names that others use for it.
    log.warning(
        "Listening on every interface without PFMS_HOSTNAMES: calls by any host name are answered, "
        "so a web page could read them by DNS rebinding."
    )
    return frozenset((ANY,))


def _names_of_machine() -> set[str]:
    return {name.lower() for name in (socket.gethostname(), socket.getfqdn())}


class HostCheck:
    """ASGI middleware that answers 421 to a request for a host that is not this server."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self.app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it. HTTP/1.0 clients may send no Host; browsers do."""
        if scope["type"] == "http" and ANY not in self._names:
            hosts = Headers(scope=scope).getlist("host")
            if len(hosts) > 1 or (hosts and not self._knows(hosts[0])):
                error = WrongHost(f"The request is for the host {', '.join(hosts)[:200]!r}.")
                await problem_response(error, Request(scope))(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _knows(self, header: str) -> bool:
        try:
            host = host_of(header)
        except ValueError:
            return False
        above = host.partition(".")[2]
        while above:
            if f"*.{above}" in self._names:
                return True
            above = above.partition(".")[2]
        return host in self._names or is_address(host)
