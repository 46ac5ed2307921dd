"""Where a server is, and how it is trusted."""

import ssl
import urllib.parse
from pathlib import Path

import httpx
import truststore

from pfms.client.problems import PfmsProblem


def base_url(text: str) -> str:
    """The complete URL of a server, without `/api/v1`, from what a person may type."""
    text = text.strip() if "://" in text else f"http://{text.strip()}"
    text = text.rstrip("/").removesuffix("/api/v1").rstrip("/")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{text!r} is not an http or https URL")
    return text


def quoted(name: str) -> str:
    """An ID as one segment of a path, which it cannot leave."""
    if name in ("", ".", ".."):
        raise PfmsProblem("not-found", f"{name!r} is not an ID", "The lists show all IDs.", 404)
    return urllib.parse.quote(name, safe="")


def trusting(ca: Path | None) -> ssl.SSLContext:
    """TLS that trusts the certificates in a file, or those that this system trusts."""
    if ca is None:
        return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise ValueError(f"{ca} holds no certificates in PEM") from None
    except OSError as error:
        raise ValueError(f"{ca} cannot be read: {error.strerror}") from None
