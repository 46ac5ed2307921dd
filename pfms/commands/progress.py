"""Shows the progress of a call on stderr: a bar on a terminal, nothing elsewhere."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from pfms.client.updates import Update
from pfms.commands.output import size

_WORDS = {
    "converting": "reading the DICOM files",
    "uploading": "sending",
    "loading": "starting the plugin",
    "inferring": "segmenting",
    "downloading": "fetching the result",
}


class Display(Protocol):
    """Shows updates while it is open. `last` is the last one."""

    last: Update | None

    def __call__(self, update: Update) -> None:
        """Show an update."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None
    ) -> None:
        """Leave the screen as it should stay."""


def display() -> Display:
    """The display that suits stderr."""
    return Bar() if sys.stderr.isatty() else Quiet()


def words(update: Update) -> str:
    """The stage, in words."""
    if update.stage == "waiting" and update.place:
        return f"waiting, {update.place} ahead of it"
    if update.stage == "checking":
        return "the server is checking it" if update.job is None else "checking the result"
    return _WORDS.get(update.stage, update.stage)


class Quiet:
    """Shows nothing."""

    def __init__(self) -> None:
        self.last: Update | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, update: Update) -> None:
        """Remember it."""
        self.last = update


class Overall:
    """One bar for several volumes on a terminal, nothing elsewhere.

    Args:
        count: How many there are.
    """

    def __init__(self, count: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not sys.stderr.isatty()
        )
        self._bar = self._progress.add_task("", total=count, note="")
        self._count = count
        self._done = 0
        self._fractions: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, file: str, update: Update) -> None:
        """Show how far one volume is."""
        self._fractions[file] = update.fraction or 0.0
        self._show(f"{file}: {words(update)}")

    def ended(self, file: str) -> None:
        """One more has ended."""
        self._done += 1
        self._fractions.pop(file, None)
        self._show("")

    def _show(self, note: str) -> None:
        self._progress.update(
            self._bar,
            description=f"{self._done} of {self._count} volumes",
            completed=self._done + sum(list(self._fractions.values())),
            note=note,
        )


class Bar:
    """A bar that moves once over the whole run, and disappears afterwards.

    Before and after the run, and if a server does not say how far the whole run is, it moves once
    over each stage.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

        self.last: Update | None = None
        self._way = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID = self._progress.add_task("", total=None, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, update: Update) -> None:
        """Move the bar."""
        new = self.last is None or self.last.stage != update.stage
        self.last = update
        way = _way(update)
        if way != self._way:
            self._way = way
            self._progress.remove_task(self._task)  # a task that is reset keeps its total
            self._task = self._progress.add_task("", total=None, note="")
        done, total = (update.fraction, 1.0) if way == "run" else (update.done, update.total)
        self._progress.update(
            self._task,
            description=words(update),
            total=total,
            completed=done or 0,
            note=_Note(update),
            refresh=new,  # so that even a short stage is seen
        )


def _way(update: Update) -> str:
    """What the bar moves over once: the run, or else the stage."""
    return update.stage if update.fraction is None or update.stage == "waiting" else "run"


class _Note:
    """The text beside the bar; formatted at each refresh, so that its clock runs."""

    def __init__(self, update: Update) -> None:
        self._update = update
        self._since = time.monotonic() - (update.elapsed or 0)

    def __format__(self, _: str) -> str:
        update = self._update
        parts = []
        if update.fraction is not None and _way(update) == "run":
            parts.append(f"{update.fraction:.0%}")
        if update.done is not None and update.total:
            if update.stage == "inferring":
                parts.append(f"{update.done} of {update.total} windows")
            elif _way(update) != "run":
                parts.append(f"{size(update.done)} of {size(update.total)}")
        if update.elapsed is not None:
            expected = f" of about {update.expected:.0f} s" if update.expected else " s"
            parts.append(f"{time.monotonic() - self._since:.0f}{expected}")
        return ", ".join(parts)
