"""`pfms infer`: send a volume, get its segmentation back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pfms.commands.output import (
    DEFAULT_SERVER,
    INTERRUPTED,
    CaOption,
    JsonOption,
    ServerOption,
    TokenFileOption,
    fail,
    print_json,
    server_client,
    warn,
)

if TYPE_CHECKING:
    from pfms.client.client import Client
    from pfms.client.problems import Json
    from pfms.client.updates import Update

_NAMES = {"labels": "spleen", "onehot": "onehot", "logits": "logits"}


def infer(
    volume: Annotated[
        Path,
        typer.Argument(
            help="A CT volume: NIfTI, plain or gzipped",
            metavar="CT.nii.gz",
            exists=True,
            dir_okay=False,
            readable=True,
        ),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="ID of a model on the server")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File or folder to write to [default: CT-spleen.nii.gz]"),
    ] = None,
    resultant: Annotated[
        Literal["labels", "onehot", "logits"],
        typer.Option(help="labels: 0 and 1; onehot, logits: what the plugin wrote"),
    ] = "labels",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file")] = False,
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Segment a volume on a server, and save the result. Ctrl-C cancels the run."""
    from pfms.commands.progress import display

    target = _target(volume, out, resultant)
    if target.exists() and not force:
        fail(f"{target} already exists", "--force replaces it, -o names another file.")
    if not target.parent.is_dir():
        fail(f"there is no folder {target.parent}", "Create it, or name another file with -o.")
    with server_client(server, ca, token_file) as client, display() as show:
        try:
            job = client.infer(volume, model, target, resultant=resultant, on_update=show)
        except KeyboardInterrupt:
            fail(*_cancelled(client, show.last), INTERRUPTED)
    if job is None:
        warn("this server keeps no jobs and may not know --resultant: check what it sent")
    for warning in job["warnings"] if job else ():
        warn(warning)
    if as_json:
        print_json({"output": str(target), "job": job})
    else:
        typer.echo(_summary(target, job))


def _target(volume: Path, out: Path | None, resultant: str) -> Path:
    stem = volume.name
    for suffix in (".gz", ".nii"):
        stem = stem[: -len(suffix)] if stem.lower().endswith(suffix) else stem
    default = Path(f"{stem}-{_NAMES[resultant]}.nii.gz")
    if out is None:
        return default
    return out / default if out.is_dir() else out


def _cancelled(client: "Client", last: "Update | None") -> tuple[str, str]:
    """Cancel what was started; return what to say about it."""
    from pfms.client.problems import ClientError

    if last is not None and last.stage == "checking" and last.job is None:
        remedy = "If it was accepted, `pfms jobs list` shows it."
        return "interrupted while the server was checking the volume", remedy
    if last is None or last.job is None:
        return "interrupted before the volume was sent", "Nothing is running."
    try:
        state = client.cancel(last.job)["state"]
    except ClientError as error:
        remedy = f"Try: pfms jobs cancel {last.job}"
        return f"interrupted, but the job could not be cancelled: {error.detail}", remedy
    if state == "succeeded":
        return f"interrupted, but job {last.job} has its result", "It stays on the server."
    return f"interrupted: job {last.job} is cancelled", ""


def _summary(target: Path, job: "Json | None") -> str:
    if job is None:
        return str(target)
    found = job["segmentation"]
    seconds = f"{job['seconds']:.1f} s on {job['device']}"
    return (
        f"{target}: spleen {found['spleen_ml']:.1f} ml ({found['spleen_voxels']} voxels), "
        f"{seconds}, job {job['id']}"
    )
