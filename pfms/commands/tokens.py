"""`pfms tokens`: who may call the server."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfms.commands.output import JsonOption, fail, print_json, print_table

if TYPE_CHECKING:
    from pfms.access.caller import Scope

app = typer.Typer(
    help="The tokens with which clients may call: add, list, revoke. A running server follows.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="Name of the token, such as that of its user")]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", help="The tokens file, instead of PFMS_TOKENS_FILE", dir_okay=False),
]


@app.command()
def add(
    name: Name,
    scopes: Annotated[
        list[str],
        typer.Option(
            "--scope",
            help="What it allows: infer, models or admin (includes the others); may be repeated",
        ),
    ],
    until: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The last day on which it is accepted, in UTC"),
    ] = None,
    file: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a token, and show it this once: the file keeps only its hash."""
    from pfms.access.tokens import add_token

    wanted = frozenset(_scope(scope) for scope in scopes)
    last_day = until.date() if until else None
    with _tokens_file(file) as path:
        token = add_token(path, name, wanted, last_day)
    if as_json:
        shown = last_day and last_day.isoformat()
        print_json({"name": name, "token": token, "scopes": sorted(wanted), "until": shown})
    else:
        typer.echo(token)
        typer.echo(f"{name}: keep this token now, it is not shown again", err=True)


@app.command("list")
def list_tokens(file: FileOption = None, as_json: JsonOption = False) -> None:
    """List the tokens, by name."""
    from pfms.access.tokens import read_tokens

    with _tokens_file(file) as path:
        tokens = sorted(read_tokens(path).items())
    if as_json:
        shown = [
            {
                "name": name,
                "scopes": sorted(token.scopes),
                "until": token.until and token.until.isoformat(),
                "ended": token.ended,
            }
            for name, token in tokens
        ]
        print_json({"tokens": shown})
    elif not tokens:
        typer.echo("There are no tokens: pfms tokens add NAME --scope infer", err=True)
    else:
        print_table(
            ("NAME", "SCOPES", "UNTIL"),
            [
                (
                    name,
                    ",".join(sorted(token.scopes)),
                    str(token.until or "-") + (" (ended)" if token.ended else ""),
                )
                for name, token in tokens
            ],
        )


@app.command()
def revoke(name: Name, file: FileOption = None, as_json: JsonOption = False) -> None:
    """Remove a token; from its next call on, its user is refused."""
    from pfms.access.tokens import revoke_token

    with _tokens_file(file) as path:
        revoke_token(path, name)
    if as_json:
        print_json({"revoked": name})
    else:
        typer.echo(f"{name} is revoked")


def _scope(text: str) -> "Scope":
    from pfms.access.caller import SCOPES

    known: dict[str, Scope] = {scope: scope for scope in SCOPES}
    if text not in known:
        fail(f"{text!r} is not a scope.", f"Use one of {', '.join(sorted(known))}.")
    return known[text]


@contextmanager
def _tokens_file(given: Path | None) -> Iterator[Path]:
    """The file that is meant; what is wrong with it ends the command."""
    from pfms.access.tokens import TokensFileError
    from pfms.settings import load_settings

    path = given or load_settings().tokens_file
    if path is None:
        fail("No tokens file is named.", "Set PFMS_TOKENS_FILE, or use --file PATH.")
    try:
        yield path
    except TokensFileError as error:
        fail(error.detail, error.remedy)
