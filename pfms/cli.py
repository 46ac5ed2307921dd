"""The command line, kept thin: what the commands do is in `commands/` and `local/`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pfms import __version__
from pfms.commands import jobs, models, tokens
from pfms.commands.compare import compare
from pfms.commands.demo import demo
from pfms.commands.infer import infer
from pfms.commands.output import FAILED, JsonOption, fail
from pfms.commands.profiles import read_profile
from pfms.commands.watch import watch
from pfms.errors import StartError

app = typer.Typer(
    help="Spleen segmentation over HTTP, around the ChRIS plugin spleenseg.",
    epilog="Exit codes: 0 done, 1 the run failed, 2 wrong usage or refused, "
    "3 the server can't be reached.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Host = Annotated[str | None, typer.Option(help="Address to listen on")]
Port = Annotated[int | None, typer.Option(help="Port; 0 takes a free one")]
WorkspaceFolder = Annotated[Path | None, typer.Option(help="Folder of models and jobs")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda:0 or cuda:0,cuda:1")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pfms {__version__}")
        raise typer.Exit


@app.callback()
def pfms(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version"),
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            envvar="PFMS_PROFILE", help="Server and token from ~/.config/pfms/profiles.toml"
        ),
    ] = None,
) -> None:
    """Spleen segmentation over HTTP, around the ChRIS plugin spleenseg."""
    try:
        known = read_profile(profile)
    except ValueError as error:
        fail(str(error), "docs/command-line.md shows a profile.")
    if known:
        ctx.default_map = _for_all(ctx.command, known)


def _for_all(group: Any, values: dict[str, str]) -> dict[str, Any]:
    """Defaults of every command below a group."""
    return {
        name: _for_all(command, values) if hasattr(command, "commands") else values
        for name, command in group.commands.items()
    }


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    workspace: WorkspaceFolder = None,
    device: Device = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Let everyone who reaches it call, without any token"),
    ] = False,
    reload: Annotated[bool, typer.Option(help="Restart when the source changes")] = False,
) -> None:
    """Serve. Options override the environment (PFMS_...), which overrides config.env."""
    from pfms.server import serve as run
    from pfms.server import serve_reloading
    from pfms.settings import load_settings

    settings = load_settings(
        host=host,
        port=port,
        workspace=workspace,
        devices=device,
        insecure=insecure or None,  # without the option, the setting decides
    )
    if reload:
        serve_reloading(settings, [str(Path(__file__).parent)])
    else:
        run(settings, say=lambda line: typer.echo(line))


app.command()(demo)
app.command()(infer)
app.command()(watch)
app.command()(compare)
app.add_typer(models.app, name="models")
app.add_typer(jobs.app, name="jobs")
app.add_typer(tokens.app, name="tokens")


@app.command()
def replay(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a job, or of an unpacked bundle", metavar="JOBDIR")
    ],
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the rerun's output even if it matches")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a job's command again, and say whether its voxels match the record.

    Exit codes: 0 they match; 1 they differ, or the run failed; 2 it cannot be run again.
    """
    from pfms.commands.local import replay as run

    run(folder, keep=keep, as_json=as_json)


@app.command()
def doctor(
    host: Host = None,
    port: Port = None,
    workspace: WorkspaceFolder = None,
    device: Device = None,
    as_json: JsonOption = False,
) -> None:
    """Check whether this machine can serve: plugin, devices, memory, disk, port; with remedies."""
    from pfms.commands.local import doctor as run

    run({"host": host, "port": port, "workspace": workspace, "devices": device}, as_json=as_json)


def main() -> None:
    """The entry point."""
    try:
        app()
    except StartError as error:
        typer.echo(error.line, err=True)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "pfms":
            raise
        remedy = "Install what a server needs: pip install 'pfms[server]'."
        typer.echo(f"pfms: {error.name} is not installed. {remedy}", err=True)
        raise SystemExit(2) from None
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        typer.echo(f"pfms: {error.strerror or error}{name}.", err=True)
        raise SystemExit(FAILED) from None
