"""Reports a run's progress: its stages, each once and in order, and how much of each is done."""

import asyncio

from pfms.plugin import PLUGIN
from pfms.plugin.types import STAGES, OnProgress, Progress

_OVERLAP = 64  # characters kept, because a line that shows the stage may be split

_ORDER = STAGES[:-1]  # when the last one begins, the run has ended


class Stages:
    """Passes on progress that is new. Create it on the event loop when the run begins.

    Args:
        on_progress: Called on the event loop with the progress; None to report nothing.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._reached = -1
        self._found = 0  # the stage that the output shows
        self._seen = ""
        self.report(Progress(_ORDER[0]))

    def report(self, progress: Progress) -> None:
        """Pass progress on, unless its stage is over or it says nothing new about this stage."""
        stage = _ORDER.index(progress.stage)
        if stage > self._reached or (stage == self._reached and progress.done is not None):
            self._reached = stage
            if self._on_progress is not None:
                self._on_progress(progress)

    def read(self, output: bytes) -> None:
        """Report the stage that a piece of the run's output shows. Called in a thread."""
        if self._found == len(_ORDER) - 1:
            return
        text = self._seen + output.decode(errors="replace")
        stage = PLUGIN.stage_of(text)
        self._seen = text[-_OVERLAP:]
        if _ORDER.index(stage) > self._found:
            self._found = _ORDER.index(stage)
            self._loop.call_soon_threadsafe(self.report, Progress(stage))
