"""The interface that all ways to find out who calls have in common."""

from dataclasses import dataclass, field
from typing import Protocol

from pfms.access.caller import Caller


@dataclass(frozen=True)
class Credentials:
    """What a call sends to say who it comes from.

    Attributes:
        token: As it was sent; never shown, so that no log or traceback can hold it.
    """

    token: str = field(repr=False)


class Authenticator(Protocol):
    """One way to find out who calls."""

    async def caller(self, credentials: Credentials) -> Caller | None:
        """Who it is; None if this way does not know the credentials, and another one may.

        Raises:
            Unauthorized: It knows them, and they are no longer accepted.
            NotReady: It cannot find out at the moment.
        """
        ...
