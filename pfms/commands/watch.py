"""`pfms watch`: follow jobs until they have ended."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pfms.commands.jobs import outcome
from pfms.commands.output import (
    DEFAULT_SERVER,
    FAILED,
    INTERRUPTED,
    CaOption,
    JsonOption,
    ServerOption,
    TokenFileOption,
    print_json,
    server_client,
)
from pfms.commands.threads import in_threads

if TYPE_CHECKING:
    from pfms.client.updates import OnUpdate

_AT_A_TIME = 8  # event streams; jobs beyond that are waiting in the queue anyway
_LISTED = 1000


def watch(
    job_ids: Annotated[
        list[str] | None,
        typer.Argument(
            help="IDs of jobs [default: all that wait or run now]",
            metavar="[ID]...",
            show_default=False,
        ),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow jobs until they have ended, with a line for the end of each.

    Exit code 1 if one of them did not succeed. Ctrl-C ends the watching, not the jobs.
    """
    with server_client(server, ca, token_file) as client:
        if not job_ids:
            active = [
                job
                for state in ("queued", "running")
                for job in client.jobs(state=state, limit=_LISTED)
            ]
            # Oldest first, as they run.
            job_ids = [job["id"] for job in sorted(active, key=lambda job: job["created_at"])]
        else:
            job_ids = list(dict.fromkeys(job_ids))
        ended = []
        try:
            with _display() as show:
                for job in in_threads(lambda each: client.wait(each, show), job_ids, _AT_A_TIME):
                    ended.append(job)
                    if not as_json:
                        typer.echo(f"{job['id']}  {job['state']}  {outcome(job)}")
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json({"jobs": ended})
    if any(job["state"] != "succeeded" for job in ended):
        raise typer.Exit(FAILED)


@contextmanager
def _display() -> "Iterator[OnUpdate | None]":
    """A bar for each job on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn

    from pfms.client.updates import Update
    from pfms.commands.progress import words

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    bars: dict[str | None, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def show(update: Update) -> None:
            if update.job not in bars:
                bars[update.job] = progress.add_task(str(update.job), total=1.0, note="")
            progress.update(bars[update.job], completed=update.fraction or 0.0, note=words(update))

        yield show
