"""`pfms models`: the weights on a server."""

from pathlib import Path
from typing import Annotated

import typer

from pfms.commands.output import (
    DEFAULT_SERVER,
    CaOption,
    JsonOption,
    ServerOption,
    TokenFileOption,
    print_json,
    print_table,
    server_client,
    size,
    warn,
)

app = typer.Typer(help="The models on a server: list, add, show, rm.", no_args_is_help=True)

ModelID = Annotated[str, typer.Argument(help="The model's ID", metavar="ID")]


@app.command("list")
def list_models(
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the models."""
    with server_client(server, ca, token_file) as client:
        models = [client.model(model_id) for model_id in client.models()]
    if as_json:
        print_json({"models": models})
    elif not models:
        typer.echo("There are no models yet: pfms models add model.pth --id ID", err=True)
    else:
        print_table(
            ("ID", "UPLOADED", "SIZE", "SHA256"),
            [
                (m["modelID"], m["uploaded_at"][:19], size(m["size"]), m["sha256"][:12])
                for m in models
            ],
        )


@app.command()
def add(
    pth: Annotated[
        Path,
        typer.Argument(help="The weights, a .pth", metavar="PTH", exists=True, dir_okay=False),
    ],
    model_id: Annotated[str, typer.Option("--id", help="The ID to store them under")],
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store weights on the server, which checks that the plugin can use them.

    A model with that ID is replaced; runs keep the weights they started with.
    """
    from pfms.commands.progress import display

    with server_client(server, ca, token_file) as client, display() as show:
        model = client.upload_model(pth, model_id, show)
    for warning in model["warnings"]:
        warn(warning)
    if as_json:
        print_json(model)
    else:
        typer.echo(f"{model_id}: {size(model['size'])}, sha256 {model['sha256']}")


@app.command()
def show(
    model_id: ModelID,
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is known about a model."""
    with server_client(server, ca, token_file) as client:
        model = client.model(model_id)
    if as_json:
        print_json(model)
        return
    for name, value in model.items():
        for line in value if isinstance(value, list) else [value]:
            typer.echo(f"{name:14} {line}")


@app.command()
def rm(
    model_ids: Annotated[list[str], typer.Argument(help="IDs of models", metavar="ID...")],
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Remove models. Jobs that were accepted with them keep their weights until they end."""
    with server_client(server, ca, token_file) as client:
        for model_id in model_ids:
            client.remove_model(model_id)
            typer.echo(f"{model_id} is removed")
