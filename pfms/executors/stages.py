"""What is told of a run while it lasts: its stages, each once and in order, and windows done."""

import asyncio
import os
from pathlib import Path

from pfms import plugin
from pfms.executors.base import OnProgress, Progress

_CHUNK = 256 << 10  # bytes of the log looked at in one go
_OVERLAP = 64  # characters kept, since a line that tells the stage may be cut in two

_ORDER: tuple[str, ...] = plugin.STAGES


class Stages:
    """Passes on what is news.

    Args:
        on_progress: Told it.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._reached = -1

    def tell(self, progress: Progress) -> None:
        """Pass it on, unless it is of an earlier stage, or nothing new about this one."""
        stage = _ORDER.index(progress.stage)
        if stage > self._reached or (stage == self._reached and progress.done is not None):
            self._reached = stage
            self._on_progress(progress)

    async def follow(self, log: Path, offset: int, poll_seconds: float) -> None:
        """Tell the stages by what the log grows by, until the last.

        Args:
            log: Which may not be there yet.
            offset: Bytes of it that an earlier run wrote.
            poll_seconds: Between two looks.
        """
        self.tell(Progress(_ORDER[0]))
        seen = ""
        while self._reached < len(_ORDER) - 1:
            text, offset = await asyncio.to_thread(_read_on, log, offset)
            if not text:
                await asyncio.sleep(poll_seconds)
                continue
            self.tell(Progress(plugin.stage_of(seen + text)))
            seen = (seen + text)[-_OVERLAP:]


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
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
