"""A caller, as far as pfms knows who it is."""

from dataclasses import dataclass
from typing import Literal, get_args

from pfms.access.limits import AS_IN_SETTINGS, Limits

Scope = Literal["infer", "models", "admin"]
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))


@dataclass(frozen=True)
class Caller:
    """Who a call comes from.

    Attributes:
        name: Of the token; None where the server asks nobody who they are.
        scopes: What the caller may do.
        limits: What the caller may hold, where that differs from the settings.
    """

    name: str | None
    scopes: frozenset[Scope]
    limits: Limits = AS_IN_SETTINGS

    def may(self, scope: Scope) -> bool:
        """Whether a call that needs `scope` is allowed; `admin` includes the others."""
        return scope in self.scopes or "admin" in self.scopes

    @property
    def sees_all(self) -> bool:
        """Whether the caller may know of everyone's jobs."""
        return "admin" in self.scopes

    def sees(self, owner: str | None) -> bool:
        """Whether the caller may know of a job that belongs to `owner`."""
        return self.sees_all or owner == self.name


# Without tokens every caller may do everything.
ANYONE = Caller(None, SCOPES)
