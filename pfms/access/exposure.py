"""Refuses to open patients' volumes to a network by default."""

import logging
from ipaddress import IPv6Address, ip_address

from pfms.errors import StartError
from pfms.settings import Settings

log = logging.getLogger(__name__)


def check_exposure(settings: Settings, address: str) -> bool:
    """Whether everyone who reaches the server may call it, from other machines too.

    Args:
        settings: What the operator has set.
        address: The IP address on which it listens.

    Raises:
        StartError: They may, and the operator has not said that this is wanted.
    """
    if settings.asks_who_calls or is_loopback(address):
        return False
    if not settings.insecure:
        raise StartError(
            f"Listening on {address} without tokens would open patients' volumes to the network.",
            "Name a tokens file in PFMS_TOKENS_FILE (pfms tokens add makes it), or say with "
            "--insecure (PFMS_INSECURE=true) that everyone who reaches it may call.",
        )
    log.warning("INSECURE: everyone who reaches %s may call, without any token", address)
    return True


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an IP address."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_loopback
