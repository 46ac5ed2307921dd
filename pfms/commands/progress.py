"""Shows the progress of a call on stderr: a bar on a terminal, otherwise a line per stage."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

import typer

from pfms.client.updates import Update
from pfms.commands.output import size

_WORDS = {
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
    return Bar() if sys.stderr.isatty() else Lines()


def words(update: Update) -> str:
    """The stage, in words."""
    if update.stage == "waiting" and update.place:
        return f"waiting, {update.place} ahead of it"
    if update.stage == "checking":
        return "the server is checking it" if update.job is None else "checking the result"
    return _WORDS.get(update.stage, update.stage)


class Lines:
    """A line for each stage."""

    def __init__(self) -> None:
        self.last: Update | None = None
        self._said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, update: Update) -> None:
        """Print the stage if it is a new one."""
        self.last = update
        line = words(update)
        if line != self._said:
            self._said = line
            more = ""
            if update.stage in ("uploading", "downloading") and update.total:
                more = f" {size(update.total)}"
            elif update.stage == "loading" and update.expected:
                more = f" (recent runs took about {update.expected:.0f} s)"
            typer.echo(f"{line}{more}", err=True)


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
