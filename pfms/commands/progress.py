"""Shows the progress of a call on stderr: a bar on a terminal, otherwise a line per stage."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

import typer

from pfms.client.transport import Update
from pfms.commands.output import size

_WORDS = {
    "uploading": "sending",
    "checking": "the server is checking it",
    "waiting": "waiting",
    "loading": "starting the plugin",
    "inferring": "segmenting",
    "saving": "saving",
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
    """A bar that moves, and disappears afterwards."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

        self.last: Update | None = None
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
        if self.last is None or self.last.stage != update.stage:
            self._progress.reset(self._task, total=None)
        self.last = update
        self._progress.update(
            self._task,
            description=words(update),
            total=update.total,
            completed=update.done or 0,
            note=_Note(update),
        )


class _Note:
    """The text beside the bar; formatted at each refresh, so that its clock runs."""

    def __init__(self, update: Update) -> None:
        self._update = update
        self._since = time.monotonic() - (update.elapsed or 0)

    def __format__(self, _: str) -> str:
        update = self._update
        parts = []
        if update.done is not None and update.total:
            if update.stage in ("uploading", "checking", "downloading"):
                parts.append(f"{size(update.done)} of {size(update.total)}")
            else:
                parts.append(f"{update.done} of {update.total} windows")
        if update.elapsed is not None:
            expected = f" of about {update.expected:.0f} s" if update.expected else " s"
            parts.append(f"{time.monotonic() - self._since:.0f}{expected}")
        return ", ".join(parts)
