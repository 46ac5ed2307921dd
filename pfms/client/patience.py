"""How long a client goes on asking, and how often."""

import time

from pfms.client.problems import ClientError, PfmsProblem, is_away, is_busy

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0  # seconds, while the server is away
_LONGEST_ADVICE = 30.0  # seconds: a place may be free sooner than the server thinks


class Patience:
    """Of one call that may be repeated.

    Args:
        away_seconds: How long to go on while the server does not answer.
        busy_seconds: How long to go on while it answers 429 or 503 with `Retry-After`.
    """

    def __init__(self, away_seconds: float, busy_seconds: float) -> None:
        self._limits = {"away": away_seconds, "busy": busy_seconds}
        self._why = ""
        self._since = 0.0
        self._pause = _FIRST_PAUSE

    def pause_after(self, error: ClientError) -> float | None:
        """Seconds to wait before the next try; None if there should be none."""
        if is_away(error):
            why, pause = "away", self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        elif isinstance(error, PfmsProblem) and is_busy(error):
            why, pause = "busy", min(error.retry_after or 0.0, _LONGEST_ADVICE)
            self._pause = _FIRST_PAUSE
        else:
            return None
        now = time.monotonic()
        if why != self._why:
            self._why, self._since = why, now
        return pause if now + pause <= self._since + self._limits[why] else None
