"""Reports a run's progress: its stages, each once and in order, and the windows done."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pfms.plugin import PLUGIN
from pfms.plugin.types import STAGES, OnProgress, Progress

_CHUNK = 256 << 10  # bytes of the log read at a time
_OVERLAP = 64  # characters kept, because a line that shows the stage may be split

_ORDER: tuple[str, ...] = STAGES


@asynccontextmanager
async def reporting_stages(
    log: Path, on_progress: OnProgress | None, poll_seconds: float
) -> AsyncIterator[OnProgress | None]:
    """During a run, follow its log and report the stages that it shows.

    Yields a callable for progress from other sources, so that nothing is reported twice.

    Args:
        log: The plugin's log, which may not exist yet.
        on_progress: Called with the progress; None to report nothing.
        poll_seconds: How often to check the log.
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
    """Passes on progress that is new."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._reached = -1

    def report(self, progress: Progress) -> None:
        """Pass progress on, unless its stage is over or it says nothing new about this stage."""
        stage = _ORDER.index(progress.stage)
        if stage > self._reached or (stage == self._reached and progress.done is not None):
            self._reached = stage
            self._on_progress(progress)

    async def follow(self, log: Path, offset: int, poll_seconds: float) -> None:
        """Report the stages until the last; the first `offset` bytes are from an earlier run."""
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
    """Read a chunk of the file from `offset`; returns the text and the next offset."""
    try:
        with path.open("rb") as file:
            file.seek(offset, os.SEEK_SET)
            read = file.read(_CHUNK)
    except FileNotFoundError:
        return "", offset
    return read.decode(errors="replace"), offset + len(read)
