"""How many connections there may be, in all and from each address."""

import ipaddress
import logging
import resource
from collections import Counter
from collections.abc import Collection

from pfms.errors import TooManyConnections

_LOCAL = ("127.0.0.1", "::1")  # a proxy on this machine calls from here on behalf of everyone
_FILES_FOR_THE_REST = 512  # descriptors for files, child processes and connections turned away
_TURNED_AWAY_LIMIT = 64  # connections that are being told so; further ones are closed at once

log = logging.getLogger(__name__)


class Door:
    """Counts the connections.

    Args:
        limit: The most connections in all (PFMS_MAX_CONNECTIONS).
        per_address: The most from one address (PFMS_MAX_CONNECTIONS_PER_ADDRESS); an IPv6 network
            of 64 bits counts as one. Those from 127.0.0.1 and ::1 are not limited.
        proxies: Networks that are not limited either, because many callers come from there.
    """

    def __init__(self, limit: int, per_address: int, proxies: Collection[str] = ()) -> None:
        self._limit = limit
        self._proxies = [ipaddress.ip_network(network) for network in proxies]
        self._per_address = per_address
        self._inside = 0
        self._turned_away = 0
        self._of: Counter[str] = Counter()

    def enter(self, address: str) -> str:
        """Let a connection in; returns the key to `leave` with.

        Raises:
            TooManyConnections: There are enough already.
        """
        key = self._key_of(address)
        if self._inside >= self._limit:
            raise TooManyConnections(f"{self._inside} connections are open.")
        if key and self._of[key] >= self._per_address:
            raise TooManyConnections(
                f"{self._of[key]} connections from this address are open.",
                "Use one connection for several requests, and close those that you do not need.",
            )
        self._inside += 1
        self._of[key] += 1
        return key

    def leave(self, key: str) -> None:
        """A connection that was let in has ended."""
        self._inside -= 1
        self._of[key] -= 1
        if not self._of[key]:
            del self._of[key]

    def turn_away(self) -> bool:
        """Whether a connection that was not let in may stay for as long as it takes to say so."""
        if self._turned_away >= _TURNED_AWAY_LIMIT:
            return False
        self._turned_away += 1
        return True

    def turned_away(self) -> None:
        """One of these has ended."""
        self._turned_away -= 1

    def _key_of(self, address: str) -> str:
        """What counts as one address; empty for those that are not limited."""
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return ""
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if str(ip) in _LOCAL or any(ip in network for network in self._proxies):
            return ""
        if isinstance(ip, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((ip, 64), strict=False))
        return str(ip)


def servable(limit: int) -> int:
    """Raise this process' limit of open files so that it can serve `limit` connections.

    Returns:
        `limit`, or fewer with a warning if the system does not allow as many.
    """
    needed = limit + _FILES_FOR_THE_REST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limit
    possible = min(limit, max(soft - _FILES_FOR_THE_REST, soft // 2))
    log.warning(
        "at most %d of PFMS_MAX_CONNECTIONS=%d: the system allows %d open files (ulimit -Hn)",
        *(possible, limit, soft),
    )
    return possible
