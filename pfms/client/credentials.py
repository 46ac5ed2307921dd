"""The token that a client sends: where it is looked for, and to whom it is sent.

It is never an argument of a command, because every user of a machine can see those.
"""

import netrc
import os
from collections.abc import Callable, Generator
from pathlib import Path

import httpx


class BearerToken(httpx.Auth):
    """Sends a token with each request.

    Raises:
        ValueError: It is empty, or has a character that a header cannot carry.
    """

    def __init__(self, token: str) -> None:
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("a token is one word of printable ASCII characters")
        self._value = f"Bearer {token}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the header."""
        request.headers["Authorization"] = self._value
        yield request


def own_token_file() -> Path:
    """`~/.config/pfms/token`, or where the user's configuration is instead."""
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(folder) if folder else Path.home() / ".config") / "pfms" / "token"


def find_credentials(
    host: str, token_file: Path | None, warn: Callable[[str], None]
) -> tuple[httpx.Auth | None, str]:
    """The credentials for a server, and where they are from: the first that there are.

    `token_file`, the environment's PFMS_TOKEN, the user's own token file, `~/.netrc`.

    Args:
        host: Of the server, which must be in `~/.netrc` by this name for it to be used.
        token_file: Named by the user.
        warn: Called with what is odd, but not wrong enough to stop.

    Raises:
        ValueError: What was found cannot be used.
    """
    if token_file is not None:
        if _others_can_read(token_file):
            warn(f"other users can read {token_file}, which holds a token")
        return _token_in(token_file), str(token_file)
    if token := os.environ.get("PFMS_TOKEN"):
        return _token(token, "PFMS_TOKEN"), "PFMS_TOKEN"
    own = own_token_file()
    if own.is_file():
        if _others_can_read(own):
            raise ValueError(f"other users can read {own}: use chmod 600 on it")
        return _token_in(own), str(own)
    try:
        entry = netrc.netrc().hosts.get(host)  # not `default`, which is for every host
    except FileNotFoundError:
        entry = None
    except (OSError, netrc.NetrcParseError) as error:
        warn(f"~/.netrc is not used: {error}")
        entry = None
    if entry is None:
        return None, ""
    login, _, password = entry
    return httpx.BasicAuth(login, password), "~/.netrc"


def _token_in(path: Path) -> BearerToken:
    try:
        return _token(path.read_text().strip(), str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} holds no token: it is not text") from None


def _token(text: str, source: str) -> BearerToken:
    try:
        return BearerToken(text)
    except ValueError as error:
        raise ValueError(f"{source} holds no token: {error}") from None


def _others_can_read(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & 0o077)
    except OSError:
        return False
