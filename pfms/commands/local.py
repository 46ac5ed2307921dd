"""What `pfms replay` and `pfms doctor` print, and their exit codes."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pfms.commands.output import FAILED, INTERRUPTED, fail, print_json, sentence

if TYPE_CHECKING:
    from pfms.local.doctor_plugin import Check
    from pfms.local.replay import Replay

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def replay(folder: Path, *, keep: bool, as_json: bool) -> None:
    """Run a job again and report the outcome."""
    from pfms.local.replay import CannotReplay
    from pfms.local.replay import replay as run

    def started() -> None:
        typer.echo(f"running {folder / 'command.sh'} again ...", err=True)

    try:
        outcome = run(folder, keep=keep, on_start=started)
    except CannotReplay as error:
        fail(error.detail, error.remedy)
    except KeyboardInterrupt:
        fail("interrupted: nothing of the rerun is left", code=INTERRUPTED)
    if as_json:
        print_json(outcome.to_dict())
    else:
        for line in report(outcome):
            typer.echo(line)
    if not outcome.same:
        raise typer.Exit(FAILED)


def report(outcome: "Replay") -> list[str]:
    """The outcome of a replay, in lines."""
    took = f"({outcome.seconds:.1f} s)"
    kept = [f"its output: {outcome.rerun}"] if outcome.rerun else []
    if outcome.same:
        return [f"same voxels: sha256 {outcome.voxels_sha256} {took}", *kept]
    if outcome.error is not None:
        lines = [f"the rerun failed {took}: {outcome.error}"]
    else:
        lines = [
            f"different voxels {took}: sha256 {outcome.voxels_sha256}, "
            f"recorded {outcome.recorded_sha256}"
        ]
    if outcome.difference is not None:
        found = outcome.difference
        lines.append(f"{found.differing} of {found.voxels} voxels differ, Dice {found.dice:.6f}")
    for name, (then, now) in outcome.changed.items():
        lines.append(f"{name}: {then} then, {now} now")
    if not outcome.changed:
        lines.append("versions, processor and weights match the record")
    return lines + kept


def doctor(overrides: dict[str, Any], *, as_json: bool) -> None:
    """Examine this machine and print what was found."""
    from pfms.errors import StartError
    from pfms.local.doctor import examine
    from pfms.local.doctor_plugin import Check
    from pfms.settings import load_settings

    try:
        settings = load_settings(**overrides)
    except StartError as error:
        checks = [Check("settings", "fail", error.detail, error.remedy)]
    else:
        if sys.stderr.isatty():
            typer.echo("Starting the plugin and querying torch, a few seconds ...", err=True)
        checks = examine(settings)
    healthy = all(check.status != "fail" for check in checks)
    if as_json:
        print_json({"ok": healthy, "checks": [check.to_dict() for check in checks]})
    elif sys.stdout.isatty():
        _print_coloured(checks)
    else:
        for check in checks:
            typer.echo(f"{check.status:4}  {check.name:13}  {_words(check)}")
    if not healthy:
        raise typer.Exit(FAILED)


def _words(check: "Check") -> str:
    return f"{sentence(check.detail)} {check.remedy}".rstrip()


def _print_coloured(checks: "list[Check]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", "found", "what to do", box=None, pad_edge=False, header_style="bold")
    for check in checks:
        table.add_row(
            Text(check.status, style=_COLOURS[check.status]),
            check.name,
            Text(sentence(check.detail)),
            Text(check.remedy),
        )
    Console().print(table)
