"""What each caller holds of the server, and how much more it may have.

A caller is known by name; all callers without one are the same caller. Everything here runs on the
event loop, and what is checked is counted before the next `await`, so that limits are exact.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pfms.access.caller import Caller
from pfms.errors import QueueFull, TooManyRequests
from pfms.jobs.journal import Journal
from pfms.jobs.rows import Rows
from pfms.jobs.runs import Runs
from pfms.settings import Settings

_UPLOAD_SECONDS = 5.0  # after which one of several uploads may well have ended
_BYTES_SECONDS = 3600.0  # only the caller, or the housekeeping, makes room


class Allowances:
    """The limits of callers: those in their tokens, else those in the settings."""

    def __init__(self, settings: Settings, journal: Journal, runs: Runs) -> None:
        self._settings = settings
        self._journal = journal
        self._runs = runs
        self._uploads: Counter[str | None] = Counter()
        self._promised: Counter[str | None] = Counter()  # bytes that are not on record yet

    @contextmanager
    def uploading(self, caller: Caller) -> Iterator[None]:
        """Count an upload while it lasts.

        Raises:
            TooManyRequests: The caller has as many uploads as it may have.
        """
        limit = _first(caller.limits.uploads, self._settings.max_uploads_per_caller)
        if limit and self._uploads[caller.name] >= limit:
            raise TooManyRequests(
                f"This caller may have {limit} uploads at a time.", retry_after=_UPLOAD_SECONDS
            )
        self._uploads[caller.name] += 1
        try:
            yield
        finally:
            _subtract(self._uploads, caller, 1)

    def check_jobs(self, caller: Caller) -> None:
        """Check that the caller may have one more job; reserve its place before the next `await`.

        Raises:
            TooManyRequests: It may not.
        """
        limit = _first(caller.limits.jobs, self._settings.max_jobs_per_caller)
        if limit and self._runs.queue.held(caller.name) >= limit:
            raise TooManyRequests(
                f"This caller may have {limit} jobs queued and running at a time.",
                retry_after=self._runs.seconds_until_one_ends(caller.name),
            )

    async def promise(self, caller: Caller, size: int) -> None:
        """Count `size` bytes that the caller's next job will keep, until `withdraw`.

        Raises:
            TooManyRequests: With them, the caller's jobs would keep more than they may.
        """
        self._promised[caller.name] += size
        limit = _first(caller.limits.bytes, self._settings.max_bytes_per_caller)
        if not limit:
            return
        # Read before the table: what is put on record meanwhile is counted in one of the two.
        promised = self._promised[caller.name]
        try:
            kept = await self._journal.read(Rows.bytes_kept, caller.name)
            if kept + promised > limit:
                raise TooManyRequests(
                    f"This caller's jobs may keep {limit} bytes; they keep {kept} now.",
                    "Delete jobs, or purge them (DELETE with ?purge=voxels), then try again.",
                    retry_after=_BYTES_SECONDS,
                )
        except BaseException:
            self.withdraw(caller, size)
            raise

    def withdraw(self, caller: Caller, size: int) -> None:
        """End a promise: the bytes are on record now, or never will be."""
        _subtract(self._promised, caller, size)


class Place:
    """A place in the queue, and within its caller's limits, while a volume is received."""

    def __init__(
        self, allowances: Allowances, runs: Runs, queue_limit: int, caller: Caller
    ) -> None:
        self._allowances = allowances
        self._runs = runs
        self._queue_limit = queue_limit
        self._caller = caller
        self._reserved = False
        self._promised = 0

    async def reserve(self, size: int) -> None:
        """Reserve it for a volume of `size` bytes, as far as this was not done already.

        Raises:
            TooManyRequests: The caller holds as much as it may.
            QueueFull: Too many jobs are waiting.
        """
        if not self._reserved:
            self._allowances.check_jobs(self._caller)
            queue = self._runs.queue
            if not queue.reserve(self._queue_limit, self._caller.name):
                raise QueueFull(
                    f"{len(queue)} jobs are already waiting.",
                    retry_after=self._runs.seconds_until_room(),
                )
            self._reserved = True
        if (more := size - self._promised) > 0:
            await self._allowances.promise(self._caller, more)
            self._promised = size

    def release(self) -> None:
        """End the reservation: the job is in the queue now, or never will be."""
        if self._reserved:
            self._runs.queue.unreserve(self._caller.name)
            self._reserved = False
        self._allowances.withdraw(self._caller, self._promised)
        self._promised = 0


def _first(own: int | None, setting: int) -> int:
    return setting if own is None else own


def _subtract(counts: Counter[str | None], caller: Caller, count: int) -> None:
    counts[caller.name] -= count
    if not counts[caller.name]:
        del counts[caller.name]
