"""TLS: the certificate that the server shows, which may be replaced while it runs."""

import asyncio
import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn, Self

from cryptography import x509

from pfms.aio import in_thread
from pfms.errors import StartError
from pfms.settings import Settings

log = logging.getLogger(__name__)

_LOOK_SECONDS = 5  # between two looks at the files
_WARN_BEFORE = timedelta(days=14)
_WARN_AGAIN = timedelta(days=1)

_Signature = list[tuple[int, int, int]] | None


class Certificate:
    """A certificate and its key, in two files that may change.

    Each pair gets a context of its own, made and checked as a whole before it is used: a new file
    beside an old one never breaks what works. `context` picks the latest for each new connection.

    Args:
        certificate: PEM: the server's certificate, followed by those of the authorities between it
            and the root.
        key: PEM, not encrypted.

    Raises:
        StartError: The files cannot be read, do not belong together, or the certificate has ended.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._signature = self._look()
        self.context, self.ends = load_pair(certificate, key)
        self._latest = self.context
        self.context.sni_callback = self._show_latest
        self._warned: datetime | None = None
        self._say_when_it_ends()

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The one that the settings name; None if they name none.

        Raises:
            StartError: Only one of the two files is named, or they cannot be used.
        """
        certificate, key = settings.tls_certificate, settings.tls_key
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            missing = "PFMS_TLS_KEY" if key is None else "PFMS_TLS_CERTIFICATE"
            raise StartError(f"{missing} is not set.", "TLS needs both a certificate and its key.")
        return cls(certificate, key)

    async def watch(self) -> None:
        """Take a new pair into use whenever the files change, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await in_thread(self._reload)

    def _reload(self) -> None:
        signature = self._look()
        if signature != self._signature:
            self._signature = signature
            try:
                self._latest, self.ends = load_pair(*self._files)
            except StartError as error:
                log.error("the new TLS certificate is not used: %s %s", error.detail, error.remedy)
                return
            self._warned = None
            log.info("a new TLS certificate is in use, valid until %s", f"{self.ends:%Y-%m-%d}")
        self._say_when_it_ends()

    def _look(self) -> _Signature:
        """What changes whenever a file does, be it written in place, renamed over or relinked."""
        try:
            statuses = [file.stat() for file in self._files]
        except OSError:
            return None
        return [(status.st_ino, status.st_size, status.st_mtime_ns) for status in statuses]

    def _show_latest(
        self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> None:
        """Called in each handshake, whether or not the client has sent a server name."""
        connection.context = self._latest

    def _say_when_it_ends(self) -> None:
        now = datetime.now(UTC)
        again = self._warned is None or now - self._warned > _WARN_AGAIN
        if self.ends - now < _WARN_BEFORE and again:
            self._warned = now
            log.warning(
                "the TLS certificate ends on %s: renew it", f"{self.ends:%Y-%m-%d %H:%M %Z}"
            )


def load_pair(certificate: Path, key: Path) -> tuple[ssl.SSLContext, datetime]:
    """A context with this pair, and the time at which the certificate ends.

    Raises:
        StartError: The pair cannot be used; the detail names the file.
    """
    ends = _end_of(_content(certificate, "PFMS_TLS_CERTIFICATE"), certificate)
    if ends <= datetime.now(UTC):
        raise StartError(
            f"The certificate in {certificate} ended on {ends:%Y-%m-%d}.", "Renew the certificate."
        )
    _content(key, "PFMS_TLS_KEY")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_has_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartError(
                f"The key in {key} is not that of the certificate in {certificate}.",
                "Set PFMS_TLS_CERTIFICATE and PFMS_TLS_KEY to files made together.",
            ) from None
        raise StartError(
            f"{certificate} and {key} cannot be used for TLS: {error.reason or error}.",
            "PFMS_TLS_CERTIFICATE and PFMS_TLS_KEY are files in PEM.",
        ) from None
    except _EncryptedError:
        raise StartError(
            f"The key in {key} is encrypted.",
            "Decrypt it (openssl pkey -in KEY -out PLAIN), readable by this user alone.",
        ) from None
    return context, ends


class _EncryptedError(Exception):
    """The key has a password, which nobody is there to type."""


def _has_no_password() -> NoReturn:
    raise _EncryptedError


def _content(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(
            f"{path} cannot be read: {error.strerror}.", f"Correct {setting}, or who may read it."
        ) from None


def _end_of(pem: bytes, path: Path) -> datetime:
    """When the first certificate of a chain, which is the server's, ends."""
    try:
        return x509.load_pem_x509_certificates(pem)[0].not_valid_after_utc
    except ValueError:
        raise StartError(
            f"{path} holds no certificate in PEM.", "Correct PFMS_TLS_CERTIFICATE."
        ) from None
