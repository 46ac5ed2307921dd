"""`pfms jobs`: the runs on a server, and the jobs table of a workspace."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pfms.commands.output import (
    DEFAULT_SERVER,
    FAILED,
    CaOption,
    JsonOption,
    ServerOption,
    TokenFileOption,
    fail,
    print_json,
    print_table,
    server_client,
)

if TYPE_CHECKING:
    from pfms.client.problems import Json

app = typer.Typer(
    help="The jobs of a server: list, show, log, cancel, rm; reindex a workspace.",
    no_args_is_help=True,
)

JobID = Annotated[str, typer.Argument(help="The job's ID", metavar="ID")]
State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@app.command("list")
def list_jobs(
    state: Annotated[State | None, typer.Option(help="Only those in this state")] = None,
    model: Annotated[str | None, typer.Option(help="Only those of this model")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many")] = 20,
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the jobs, newest first."""
    with server_client(server, ca, token_file) as client:
        jobs = client.jobs(state=state, model_id=model, limit=limit)
    if as_json:
        print_json({"jobs": jobs})
    else:
        print_table(
            ("ID", "STATE", "MODEL", "SECONDS", "RESULT"),
            [(j["id"], j["state"], j["model"]["modelID"], _seconds(j), outcome(j)) for j in jobs],
        )


@app.command()
def show(
    job_id: JobID,
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is known about a job."""
    with server_client(server, ca, token_file) as client:
        job = client.job(job_id)
    if as_json:
        print_json(job)
        return
    volume = job["volume"]
    rows = {
        "job": job["id"],
        "state": job["state"],
        "result": outcome(job),
        "remedy": job["error"]["remedy"] if job["error"] else "",
        "model": f"{job['model']['modelID']} (sha256 {job['model']['sha256']})",
        "volume": f"{' x '.join(map(str, volume['shape']))}, "
        f"{' x '.join(f'{mm:g}' for mm in volume['spacing'])} mm, {volume['orientation']}",
        "resultant": job["resultant"],
        "device": job["device"] or "",
        "created": job["created_at"],
        "started": job["started_at"] or "",
        "ended": job["ended_at"] or "",
        "seconds": _seconds(job),
        "memory": _memory(job),
        "command": " ".join(job["command"]),
        "folder": f"{job['folder']} (in the server's workspace)",
        "warnings": "; ".join(job["warnings"]),
    }
    for name, value in rows.items():
        if value:
            typer.echo(f"{name:10} {value}")


@app.command()
def log(
    job_id: JobID,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends")
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Print what the plugin printed."""
    with server_client(server, ca, token_file) as client:
        try:
            for piece in client.log(job_id, follow):
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
        except KeyboardInterrupt:  # ends the reading, not the job
            return


@app.command()
def cancel(
    job_id: JobID,
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel a job that is waiting or running."""
    with server_client(server, ca, token_file) as client:
        before = client.job(job_id)
        job = client.cancel(job_id)
    if as_json:
        print_json(job)
    elif before["state"] in ("queued", "running"):
        typer.echo(f"{job_id} is being cancelled")
    else:
        typer.echo(f"{job_id} had already ended: {job['state']}")


@app.command()
def rm(
    job_ids: Annotated[list[str], typer.Argument(help="IDs of jobs", metavar="ID...")],
    purge_voxels: Annotated[
        bool,
        typer.Option("--purge-voxels", help="Only volumes and weights: record and log stay"),
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Remove jobs that have ended, with all their files."""
    with server_client(server, ca, token_file) as client:
        for job_id in job_ids:
            client.remove_job(job_id, purge_voxels=purge_voxels)
            typer.echo(f"{job_id} {'no longer has voxels' if purge_voxels else 'is removed'}")


@app.command()
def reindex(
    workspace: Annotated[
        Path | None, typer.Option(help="The folder of models and jobs [default: the setting]")
    ] = None,
) -> None:
    """Rebuild the jobs table of a workspace from its folders, while no server uses it."""
    from pfms.jobs.table import Records
    from pfms.settings import load_settings
    from pfms.storage.workspace import Workspace

    place = Workspace(load_settings(workspace=workspace).workspace)
    if not place.jobs.is_dir():
        fail(
            f"{place.root} is not a workspace: it has no folder 'jobs'",
            "Name one: --workspace DIR.",
        )
    place.open()
    try:
        records = Records(place)
        records.open()
        count = records.reindex()
        records.close()
        left_out = len(records.left_out)
    finally:
        place.close()
    typer.echo(f"jobs in the table of {place.root}: {count}")
    if left_out:
        fail(
            f"folders left out, because their job.json is missing or damaged: {left_out}",
            "The lines above name them.",
            FAILED,
        )


def _seconds(job: "Json") -> str:
    return "" if job["seconds"] is None else f"{job['seconds']:.1f}"


def _memory(job: "Json") -> str:
    known = {
        "at its peak": job.get("peak_memory_bytes"),  # an older server does not tell
        "estimated": job.get("estimated_memory_bytes"),
    }
    return ", ".join(f"{size / 2**30:.2f} GiB {what}" for what, size in known.items() if size)


def outcome(job: "Json") -> str:
    """What came of a job so far, in words."""
    if job["error"]:
        return f"{job['error']['code']}: {job['error']['detail']}"
    if job["segmentation"]:
        purged = ", voxels purged" if job["purged_at"] else ""
        return f"spleen {job['segmentation']['spleen_ml']:.1f} ml{purged}"
    if job["place"] is not None:
        return f"{job['place']} ahead of it"
    return str(job["progress"]["stage"])
