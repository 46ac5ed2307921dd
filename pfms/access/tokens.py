"""The tokens file (PFMS_TOKENS_FILE): named tokens, each as a SHA-256 with its scopes.

A token is 256 random bits, so nobody can find it by trying, and a plain hash is enough: salts and
slow hashes protect passwords, which people choose and reuse. Reading the file reveals no token.
"""

import asyncio
import fcntl
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_serializer,
)

from pfms.access.authenticator import Credentials
from pfms.access.caller import Caller, Scope
from pfms.access.limits import AS_IN_SETTINGS, Limits
from pfms.errors import NotReady, StartError, Unauthorized
from pfms.storage.files import writing_atomically

log = logging.getLogger(__name__)

_RANDOM_BYTES = 32
_PREFIX = "pfms_"  # by which programs that look for leaked secrets can know it
_NAME = r"^[A-Za-z0-9._-]{1,64}$"
_NOT_FOR_OTHERS = 0o027  # the group may read it (a container's random user), and do no more

_Signature = tuple[int, ...]


class TokensFileError(Exception):
    """The tokens file cannot be used as it is, or not in the way that was asked for.

    Attributes:
        detail: What is wrong.
        remedy: What to do about it, in one sentence.
    """

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


class Token(BaseModel):
    """A token as the file has it. An unknown key is an error: it may be a misspelt `until`.

    Attributes:
        sha256: Of the token, in hexadecimal.
        scopes: What its caller may do.
        until: The last day on which it is accepted, in UTC; None for no end.
        limits: What its caller may hold, where that differs from the settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    until: date | None = None
    limits: Limits | None = None

    @field_serializer("scopes")
    def _in_order(self, scopes: frozenset[Scope]) -> list[Scope]:
        return sorted(scopes)

    @property
    def ended(self) -> bool:
        """Whether its last day is over."""
        return self.until is not None and datetime.now(UTC).date() > self.until


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: dict[Annotated[str, StringConstraints(pattern=_NAME)], Token]


@dataclass(frozen=True)
class _Read:
    """What a reading found: the tokens, or why there are none."""

    signature: _Signature | None
    tokens: dict[str, Token] | None
    error: TokensFileError | None = None


class TokensFile:
    """The tokens of a file, read again whenever the file changes; one of the authenticators."""

    def __init__(self, path: Path) -> None:
        """Read the file for the first time.

        Raises:
            StartError: It cannot be used.
        """
        self._path = path
        self._last = _read(path)
        if self._last.error is not None:
            raise StartError(self._last.error.detail, self._last.error.remedy)
        _report(self._last)

    async def caller(self, credentials: Credentials) -> Caller | None:
        """The caller whose token it is.

        Raises:
            Unauthorized: The token's last day is over.
            NotReady: The file cannot be used as it is now.
        """
        tokens = await asyncio.to_thread(self._current)
        sent = _hash(credentials.token)
        found: tuple[str, Token] | None = None
        for name, token in tokens.items():  # all of them, so that the time taken tells nothing
            if hmac.compare_digest(token.sha256, sent):
                found = (name, token)
        if found is None:
            return None
        name, token = found
        if token.ended:
            raise Unauthorized(f"The last day of the token {name!r} was {token.until}.")
        return Caller(name, token.scopes, token.limits or AS_IN_SETTINGS)

    def _current(self) -> dict[str, Token]:
        last = self._last
        if last.signature is None or _signature_at(self._path) != last.signature:
            found = _read(self._path)
            if (found.signature, str(found.error)) != (last.signature, str(last.error)):
                _report(found)
            self._last = last = found
        if last.tokens is None:
            raise NotReady(
                "The server cannot use its list of tokens.",
                "Tell the operator of this server: its log says what is wrong with the file.",
            )
        return last.tokens


def read_tokens(path: Path) -> dict[str, Token]:
    """The tokens of a file, by name.

    Raises:
        TokensFileError: The file cannot be used.
    """
    found = _read(path)
    if found.error is not None:
        raise found.error
    return found.tokens or {}


def add_token(path: Path, name: str, scopes: frozenset[Scope], until: date | None = None) -> str:
    """Add a token to the file, which is made if it is missing; returns the token.

    Raises:
        TokensFileError: The name is taken or is not one, or the file cannot be used.
    """
    if not re.fullmatch(_NAME, name):
        raise TokensFileError(
            f"{name!r} is not a name for a token.",
            "Use letters, digits, '.', '_' and '-', at most 64 characters.",
        )
    token = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    with _editing(path) as tokens:
        if name in tokens:
            raise TokensFileError(
                f"There is already a token named {name!r}.",
                "Use another name, or revoke that token first.",
            )
        tokens[name] = Token(sha256=_hash(token), scopes=scopes, until=until)
    return token


def revoke_token(path: Path, name: str) -> None:
    """Remove a token from the file.

    Raises:
        TokensFileError: No token has this name, or the file cannot be used.
    """
    with _editing(path) as tokens:
        if tokens.pop(name, None) is None:
            raise TokensFileError(
                f"There is no token named {name!r}.", "pfms tokens list shows them."
            )


@contextmanager
def _editing(path: Path) -> Iterator[dict[str, Token]]:
    """Give the tokens to change, and write them if nothing was raised; one editor at a time."""
    path = path.resolve()  # of a link, the file that it leads to is replaced
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        tokens = read_tokens(path) if path.exists() else {}
        yield tokens
        _write(path, tokens)
    finally:
        os.close(folder)


def _write(path: Path, tokens: dict[str, Token]) -> None:
    document = _Document(tokens=tokens).model_dump(mode="json", exclude_none=True)
    before = path.stat() if path.exists() else None
    with writing_atomically(path) as file:
        os.fchmod(file.fileno(), 0o600 if before is None else before.st_mode & 0o777)
        made = os.fstat(file.fileno())
        if before is not None and (before.st_uid, before.st_gid) != (made.st_uid, made.st_gid):
            try:
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            except PermissionError:
                raise TokensFileError(
                    f"{path} belongs to another user or group.", "Run this command as that user."
                ) from None
        file.write(f"{json.dumps(document, indent=2)}\n".encode())


def _hash(token: str) -> str:
    return sha256(token.encode(errors="surrogatepass")).hexdigest()


def _signature(found: os.stat_result) -> _Signature:
    """What changes whenever the file, or who may read it, does."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _signature_at(path: Path) -> _Signature | None:
    try:
        return _signature(path.stat())
    except OSError:
        return None


def _read(path: Path) -> _Read:
    signature = None
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            signature = _signature(found)
            if found.st_mode & _NOT_FOR_OTHERS:
                raise TokensFileError(
                    f"Other users may read or change the tokens file {path}.",
                    f"Correct it: chmod 600 {path}",
                )
            tokens = _Document.model_validate_json(file.read()).tokens
    except TokensFileError as error:
        return _Read(signature, None, error)
    except FileNotFoundError:
        missing = f"There is no tokens file {path}."
        remedy = "Make it: pfms tokens add NAME --scope infer"
        return _Read(signature, None, TokensFileError(missing, remedy))
    except OSError as failure:
        detail = f"The tokens file {path} cannot be read: {failure.strerror}."
        return _Read(signature, None, TokensFileError(detail, "Let the user of pfms read it."))
    except ValidationError as invalid:
        first = invalid.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        detail = (
            f"The tokens file {path} is not valid: {f'{place}: ' if place else ''}{first['msg']}."
        )
        return _Read(signature, None, TokensFileError(detail, "Correct it there."))
    return _Read(signature, tokens)


def _report(found: _Read) -> None:
    if found.error is not None:
        log.error(
            "%s Every call that needs a token is refused. %s", found.error, found.error.remedy
        )
    else:
        log.info("the tokens file holds %d tokens", len(found.tokens or {}))
