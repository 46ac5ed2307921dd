"""The time, as records write it."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time, in UTC, to the microsecond."""
    return datetime.now(UTC)


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds: it sorts as text as it does in time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
