"""What the commands share: the server they talk to, tables, and how errors are reported."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from pfms.client.client import PfmsClient
    from pfms.client.transport import PfmsProblem

FAILED = 1  # the run did
USAGE = 2  # or refused by the server: the caller can fix it
UNREACHABLE = 3
INTERRUPTED = 130  # by Ctrl-C, as shells expect it

_NOT_NOW = frozenset({"queue-full", "disk-full", "not-ready", "no-device"})

ServerOption = Annotated[
    str, typer.Option("--server", envvar="PFMS_SERVER", help="URL of the server", metavar="URL")
]
DEFAULT_SERVER = "http://127.0.0.1:2024"
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        envvar="PFMS_CA",
        help="Certificates (PEM) that an https server is checked against [default: the system's]",
        metavar="FILE",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]


def fail(detail: str, remedy: str = "", code: int = USAGE) -> NoReturn:
    """Print what is wrong in one line, and exit."""
    typer.echo(f"pfms: {sentence(detail)} {remedy}".rstrip(), err=True)
    raise typer.Exit(code)


def sentence(text: str) -> str:
    """Text with a full stop."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


@contextmanager
def server_client(url: str, ca: Path | None) -> Iterator["PfmsClient"]:
    """A client of the server at `url`; its errors end the command with their exit code."""
    from pfms.client.client import PfmsClient
    from pfms.client.transport import PfmsProblem, Unreachable

    try:
        client = PfmsClient(url, ca=ca)
    except ValueError as error:
        fail(str(error), "Name a server as http://HOST:PORT, and a file of certificates with --ca.")
    try:
        with client:
            yield client
    except Unreachable as error:
        fail(error.detail, error.remedy, UNREACHABLE)
    except PfmsProblem as problem:
        fail(*_words(problem), _exit_code(problem))


def _words(problem: "PfmsProblem") -> tuple[str, str]:
    where = f"{problem.code}, job {problem.job}" if problem.job else problem.code
    return problem.detail, f"{problem.remedy} ({where})".lstrip()


def _exit_code(problem: "PfmsProblem") -> int:
    """A failed job has no status; of the rest, what is not the server's fault is a refusal."""
    if problem.status is not None and (problem.status < 500 or problem.code in _NOT_NOW):
        return USAGE
    return FAILED


def print_json(value: Any) -> None:
    """Print JSON for scripts."""
    typer.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, never cut off or wrapped, so that IDs can be copied."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.secho("  ".join(cells).rstrip(), bold=True if row is columns else None)


def size(count: int) -> str:
    """`12.3 MB`, `820 kB`."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
