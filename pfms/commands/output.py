"""What the commands share: the server they talk to, tables, and how errors are reported."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

if TYPE_CHECKING:
    from pfms.client.client import Client
    from pfms.client.problems import PfmsProblem

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
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        help="File that holds a token [default: PFMS_TOKEN, ~/.config/pfms/token or ~/.netrc]",
        metavar="FILE",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]


class Where(NamedTuple):
    """The server that is meant, as the options say it."""

    url: str
    ca: Path | None
    token_file: Path | None


def fail(detail: str, remedy: str = "", code: int = USAGE) -> NoReturn:
    """Print what is wrong in one line, and exit."""
    typer.echo(f"pfms: {sentence(detail)} {remedy}".rstrip(), err=True)
    raise typer.Exit(code)


def sentence(text: str) -> str:
    """Text with a full stop."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


@contextmanager
def server_client(
    url: str, ca: Path | None, token_file: Path | None, **patience: float
) -> Iterator["Client"]:
    """A client of the server at `url`; its errors end the command with their exit code.

    `patience` is of `Client`: `retry_seconds`, `busy_seconds`.
    """
    import httpx

    from pfms.client.address import base_url
    from pfms.client.client import Client
    from pfms.client.credentials import find_credentials
    from pfms.client.problems import ClientError, PfmsProblem, Unreachable
    from pfms.hosts import LOOPBACK

    try:
        place = httpx.URL(base_url(url))
        auth, source = find_credentials(place.host, token_file, warn)
        client = Client(url, ca=ca, auth=auth, **patience)
    except ValueError as error:
        fail(str(error), "pfms COMMAND --help says what --server, --ca and --token-file take.")
    if auth is not None and place.scheme == "http" and place.host not in LOOPBACK:
        warn(f"the token is sent to {place.host} unencrypted, because the URL begins with http://")
    try:
        with client:
            yield client
    except Unreachable as error:
        fail(error.detail, error.remedy, UNREACHABLE)
    except PfmsProblem as problem:
        fail(*_words(problem, source), _exit_code(problem))
    except ClientError as error:
        fail(error.detail, error.remedy)


def warn(text: str) -> None:
    """Print what is odd, and go on."""
    typer.echo(f"warning: {text}", err=True)


def _words(problem: "PfmsProblem", source: str) -> tuple[str, str]:
    """Detail and remedy; `source` is where the token that was sent is from, empty if none was."""
    where = f"{problem.code}, job {problem.job}" if problem.job else problem.code
    remedy = problem.remedy
    if problem.status in (401, 403) and source:
        remedy = f"{remedy} The token that was sent is from {source}."
    elif problem.status == 401:
        remedy = "Put a token into a file of your own and name it with --token-file."
    return problem.detail, f"{remedy} ({where})".lstrip()


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
