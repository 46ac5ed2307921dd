"""What is told of a run while it lasts: its stages, each once and in order, and windows done."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pfms.plugin import PLUGIN
from pfms.plugin.types import STAGES, OnProgress, Progress

_CHUNK = 256 << 10  # bytes of the log looked at in one go
_OVERLAP = 64  # characters kept, since a line that tells the stage may be cut in two

_ORDER: tuple[str, ...] = STAGES


@asynccontextmanager
async def reporting_stages(
    log: Path, on_progress: OnProgress | None, poll_seconds: float
) -> AsyncIterator[OnProgress | None]:
    """While a run lasts, tell its stages by what its log grows by.

    Gives what else may be told of the run goes through, so that nothing is told twice.

    Args:
        log: Which may not be there yet.
        on_progress: Told it; None where nobody wants to know.
        poll_seconds: Between two looks.
    """
    if on_progress is None:
        yield None
        return
    stages = _Stages(on_progress)
    offset = await asyncio.to_thread(_size_of, log)
    follower = asyncio.create_task(stages.follow(log, offset, poll_seconds))
    try:
        yield stages.report
    finally:
        follower.cancel()


class _Stages:
    """Passes on what is news."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._reached = -1

    def report(self, progress: Progress) -> None:
        """Pass it on, unless it is of an earlier stage, or nothing new about this one."""
        stage = _ORDER.index(progress.stage)
        if stage > self._reached or (stage == self._reached and progress.done is not None):
            self._reached = stage
            self._on_progress(progress)

    async def follow(self, log: Path, offset: int, poll_seconds: float) -> None:
        """Tell the stages until the last; `offset` bytes of the log are of an earlier run."""
        self.report(Progress(_ORDER[0]))
        seen = ""
        while self._reached < len(_ORDER) - 1:
            text, offset = await asyncio.to_thread(_read_on, log, offset)
            if not text:
                await asyncio.sleep(poll_seconds)
                continue
            self.report(Progress(PLUGIN.stage_of(seen + text)))
            seen = (seen + text)[-_OVERLAP:]


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read_on(path: Path, offset: int) -> tuple[str, int]:
    """What follows `offset` in the file, at most a chunk, and where to read on."""
    try:
        with path.open("rb") as file:
            file.seek(offset, os.SEEK_SET)
            read = file.read(_CHUNK)
    except FileNotFoundError:
        return "", offset
    return read.decode(errors="replace"), offset + len(read)
