"""Tokens of an identity provider: JWTs (OpenID Connect), checked against its published keys."""

import asyncio
import logging
import ssl
import time
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import truststore

from pfms.access.authenticator import Credentials
from pfms.access.caller import SCOPES, Caller
from pfms.aio import in_thread
from pfms.errors import NotReady, StartError, Unauthorized
from pfms.hosts import LOOPBACK

log = logging.getLogger(__name__)

# Only signatures that the published key checks and cannot make, by the key's type.
_ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
_LEEWAY_SECONDS = 30  # by which the clocks of issuer and server may differ
_FRESH_SECONDS = 600  # keys are fetched again after this, so that a withdrawn one is soon refused
_LONGEST_SECONDS = 3600  # keys are used for this long if the issuer cannot be reached
_PAUSE_SECONDS = 10  # between two requests to the issuer, whatever callers send
_TIMEOUT_SECONDS = 5
_LONGEST_SUBJECT = 255  # OpenID Connect Core, 2


@dataclass(frozen=True)
class _Key:
    """A published key, and the algorithms that it may be used with."""

    key: Any
    algorithms: tuple[str, ...]


class Issuer:
    """An identity provider; one of the authenticators.

    Args:
        url: Of the issuer, as it stands in the claim `iss`.
        audience: What the claim `aud` has to contain.
        scopes_claim: The claim that holds `infer`, `models` or `admin`: words, or a list.

    Raises:
        StartError: A setting is missing, or the URL is not https.
    """

    def __init__(self, url: str, audience: str, scopes_claim: str) -> None:
        if not url or not audience:
            raise StartError(
                f"PFMS_OIDC_{'AUDIENCE' if url else 'ISSUER'} is not set.",
                "Set both of them: without an audience, tokens made for other services would pass.",
            )
        if not _is_safe(url):
            raise StartError(
                f"PFMS_OIDC_ISSUER={url!r} is not an https URL.",
                "Keys fetched without TLS could be anyone's; http is for issuers on this machine.",
            )
        self._url = url
        self._audience = audience
        self._scopes_claim = scopes_claim
        self._keys: dict[str | None, _Key] = {}
        self._fetched: float | None = None
        self._asked: float | None = None
        self._lock = asyncio.Lock()

    async def caller(self, credentials: Credentials) -> Caller | None:
        """The caller whose token it is; None if it is no JWT.

        Raises:
            Unauthorized: It is not this issuer's, not for this server, or not valid now.
            NotReady: The issuer's keys are not known, and cannot be fetched.
        """
        token = credentials.token
        try:
            header = jwt.get_unverified_header(token)
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.PyJWTError:
            return None
        # Checked again with the signature; here it saves the issuer a request.
        if claims.get("iss") != self._url:
            raise Unauthorized("The token is from another issuer.")
        if not any(header.get("alg") in names for names in _ALGORITHMS.values()):
            raise Unauthorized("The token is not signed in a way that this server accepts.")
        try:
            claims = await self._checked(token, header.get("kid"))
        except jwt.PyJWTError as error:
            raise Unauthorized(_what_is_wrong(error)) from None
        return Caller(f"oidc:{_subject(claims)}", _scopes(claims.get(self._scopes_claim)))

    async def _checked(self, token: str, kid: str | None) -> dict[str, Any]:
        """The claims of a token whose signature and claims are right."""
        try:
            return self._decoded(token, await self._key(kid))
        except jwt.InvalidSignatureError:
            if kid is not None:
                raise
        await self._refresh()  # it names no key, so its issuer may have a new one
        return self._decoded(token, await self._key(kid))

    def _decoded(self, token: str, key: _Key) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=list(key.algorithms),
            issuer=self._url,
            audience=self._audience,
            leeway=_LEEWAY_SECONDS,
            options={"require": ["iss", "aud", "exp", "sub"]},
        )
        return claims

    async def _key(self, kid: str | None) -> _Key:
        """The key of this ID; a token need not name it if there is only one."""
        age = self._age()
        if age is None or age > _FRESH_SECONDS or (kid is not None and kid not in self._keys):
            await self._refresh()
            age = self._age()
        if age is None or age > _LONGEST_SECONDS:
            raise NotReady(
                "The server cannot fetch the keys of the identity provider.",
                "Try again in a minute; tokens of the server's own are accepted meanwhile.",
                retry_after=_PAUSE_SECONDS,
            )
        if kid is None and len(self._keys) == 1:
            [key] = self._keys.values()
            return key
        found = self._keys.get(kid)
        if found is None:
            raise Unauthorized("The token is signed with a key that its issuer does not publish.")
        return found

    def _age(self) -> float | None:
        """Seconds since the keys were fetched; None if they never were."""
        return None if self._fetched is None else time.monotonic() - self._fetched

    async def _refresh(self) -> None:
        """Fetch the keys, unless that was tried a moment ago; the old ones stay if it fails."""
        async with self._lock:
            now = time.monotonic()
            if self._asked is not None and now - self._asked < _PAUSE_SECONDS:
                return
            self._asked = now
            try:
                self._keys = await in_thread(self._fetch)
                self._fetched = time.monotonic()
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, jwt.PyJWTError) as error:
                log.error("the keys of %s cannot be fetched: %s", self._url, error)

    def _fetch(self) -> dict[str | None, _Key]:
        with httpx.Client(
            verify=truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            timeout=_TIMEOUT_SECONDS,
            trust_env=httpx.URL(self._url).host not in LOOPBACK,
        ) as http:
            document = _json(http, f"{self._url.rstrip('/')}/.well-known/openid-configuration")
            if document.get("issuer") != self._url:
                raise ValueError(f"it calls itself {document.get('issuer')!r}")
            place = document.get("jwks_uri")
            if not isinstance(place, str) or not _is_safe(place):
                raise ValueError(f"its jwks_uri is {place!r}, which is not an https URL")
            return _keys_of(_json(http, place))


def _json(http: httpx.Client, url: str) -> dict[str, Any]:
    body = http.get(url).raise_for_status().json()
    if not isinstance(body, dict):
        raise ValueError(f"{url} returns no JSON object")
    return body


def _keys_of(document: dict[str, Any]) -> dict[str | None, _Key]:
    """The keys for signatures, by ID.

    Raises:
        ValueError: There is none.
    """
    found: dict[str | None, _Key] = {}
    for each in document.get("keys", ()):
        if not isinstance(each, dict) or each.get("use", "sig") != "sig":
            continue
        algorithms = _ALGORITHMS.get(each.get("kty", ""), ())
        if "alg" in each:
            algorithms = tuple(name for name in algorithms if name == each["alg"])
        if algorithms:
            try:
                found[each.get("kid")] = _Key(jwt.PyJWK(each).key, algorithms)
            except jwt.PyJWTError as error:
                log.warning("a key of the identity provider is left out: %s", type(error).__name__)
    if not found:
        raise ValueError("it publishes no key that can be used")
    return found


def _what_is_wrong(error: jwt.PyJWTError) -> str:
    if isinstance(error, jwt.ExpiredSignatureError):
        return "The token has ended."
    if isinstance(error, jwt.ImmatureSignatureError):
        return "The token is not valid yet."
    if isinstance(error, jwt.InvalidAudienceError):
        return "The token is for another service."
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"The token lacks the claim {error.claim}."
    return "The token is not one that its issuer has signed."


def _subject(claims: dict[str, Any]) -> str:
    subject = claims["sub"]
    if not (isinstance(subject, str) and subject.isprintable() and subject.isascii()):
        raise Unauthorized("The subject of the token is not printable ASCII.")
    if not 0 < len(subject) <= _LONGEST_SUBJECT:
        raise Unauthorized("The subject of the token is empty or too long.")
    return subject


def _scopes(claim: object) -> frozenset[Any]:
    """What the caller may do; words that are no scope of pfms mean nothing here."""
    words = claim.split() if isinstance(claim, str) else claim
    if not isinstance(words, list):
        return frozenset()
    return SCOPES & {word for word in words if isinstance(word, str)}


def _is_safe(url: str) -> bool:
    try:
        place = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return bool(place.host) and (
        place.scheme == "https" or (place.scheme == "http" and place.host in LOOPBACK)
    )
