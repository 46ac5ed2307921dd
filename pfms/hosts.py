"""Hosts and origins in a normal form, so that two spellings of the same one compare as equal."""

import re
from ipaddress import ip_address

import idna

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"  # `_` is in names of Docker and Windows
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LONGEST_NAME = 253
_HOST_AND_PORT = r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]\\]+)(?::([0-9]{0,5}))?"
_HOST_HEADER = re.compile(_HOST_AND_PORT)
_ORIGIN = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*)://{_HOST_AND_PORT}")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def is_address(host: str) -> bool:
    """Whether a host is an IP address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def normal_host(text: str) -> str:
    """A name or an IP address as a browser sends it: lower case, punycode, without a final dot.

    An IPv6 address may be in brackets, which are removed.

    Raises:
        ValueError: It is neither.
    """
    bare = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    if is_address(bare):
        return str(ip_address(bare))
    name = text.removesuffix(".")
    if len(name) <= _LONGEST_NAME:
        if not name.isascii():
            name = idna.encode(name, uts46=True).decode()  # its error is a ValueError
        name = name.lower()
        if _NAME.fullmatch(name):
            return name
    raise ValueError("it is neither a host name nor an IP address")


def host_of(header: str) -> str:
    """The host that a `Host` header names, without its port.

    Raises:
        ValueError: It does not name one.
    """
    match = _HOST_HEADER.fullmatch(header)
    if match is None:
        raise ValueError("it is not a host")
    return normal_host(match[1])


def normal_origin(text: str) -> str:
    """`scheme://host[:port]` as a browser sends it: without the scheme's default port.

    Raises:
        ValueError: It is something else, such as `null`, or a URL with a path.
    """
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise ValueError("an origin is written https://viewer.example or http://viewer.example:81")
    scheme, host, port = match[1].lower(), normal_host(match[2]), (match[3] or "").lstrip("0")
    shown = f"[{host}]" if ":" in host else host
    suffix = f":{port}" if port and port != _DEFAULT_PORTS.get(scheme) else ""
    return f"{scheme}://{shown}{suffix}"
