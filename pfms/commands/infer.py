"""`pfms infer`: send a volume, get its segmentation back."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pfms.commands.output import (
    DEFAULT_SERVER,
    FAILED,
    INTERRUPTED,
    UNREACHABLE,
    CaOption,
    JsonOption,
    ServerOption,
    TokenFileOption,
    Where,
    fail,
    print_json,
    print_table,
    server_client,
    warn,
)
from pfms.commands.volumes import ENDINGS, Task, found

if TYPE_CHECKING:
    from pfms.client.client import Client
    from pfms.client.problems import Json
    from pfms.client.updates import Update
    from pfms.commands.batch import Row


def infer(
    volumes: Annotated[
        list[str],
        typer.Argument(
            help="CT volumes (NIfTI, plain or gzipped, or DICOM), folders of them, or patterns",
            metavar="CT...",
        ),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="ID of a model on the server")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="File (of one volume) or folder to write to [default: this folder]"
        ),
    ] = None,
    resultant: Annotated[
        Literal["labels", "onehot", "logits"],
        typer.Option(help="labels: 0 and 1; onehot, logits: what the plugin wrote"),
    ] = "labels",
    force: Annotated[bool, typer.Option("--force", help="Replace existing files")] = False,
    jobs: Annotated[
        int, typer.Option(min=1, max=100, help="How many volumes to have on the server at a time")
    ] = 4,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Go on where an earlier call was ended: skip volumes that have a result, and join "
            "the jobs of others that were already sent",
        ),
    ] = False,
    csv: Annotated[
        Path | None,
        typer.Option(help="Write the table to this file, too", metavar="FILE", dir_okay=False),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(
            help="Take only the DICOM series with this UID or description; * is any text",
            metavar="SERIES",
        ),
    ] = None,
    dicom_seg: Annotated[
        bool,
        typer.Option("--dicom-seg", help="Of DICOM, write the result as DICOM SEG, too"),
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Segment volumes on a server, and save the results. Ctrl-C cancels the runs.

    A DICOM series becomes NIfTI on this machine: names and numbers of patients do not leave it.
    With several volumes: a table at the end, and exit code 1 if any failed; the others are done.
    """
    where = Where(server, ca, token_file)
    if force and skip_existing:
        fail("--force and --skip-existing exclude each other", "Use one of them.")
    if dicom_seg and resultant != "labels":
        fail("--dicom-seg takes labels", "Leave out --resultant.")
    tasks = _tasks(volumes, out, resultant, series or [])
    if dicom_seg and not all(task.series for task in tasks):
        other = next(task.name for task in tasks if not task.series)
        fail(f"{other} is not DICOM", "Without --dicom-seg its result is written as NIfTI.")
    alone = len(volumes) == 1 and Path(volumes[0]).is_file() and len(tasks) == 1
    named = out is not None and not out.is_dir() and out.name.lower().endswith(ENDINGS)
    alone = (alone or named) and csv is None and not skip_existing
    if out is not None and not out.is_dir() and (alone or named):
        if len(tasks) != 1:
            fail(f"{out} is one file for {len(tasks)} results", "Name a folder with -o.")
        tasks = [replace(tasks[0], target=out)]
    elif out is not None and out.is_file():
        fail(f"{out} is a file", "Several volumes go to a folder: name one with -o.")
    there = [path for task in tasks for path in task.outputs(dicom_seg) if path.exists()]
    if alone:
        if there and not force:
            fail(f"{there[0]} already exists", "--force replaces it, -o names another file.")
        _infer_one(tasks[0], model, resultant, dicom_seg, where, as_json)
        return
    if there and not force and not skip_existing:
        fail(
            f"results already exist: {len(there)}, such as {there[0]}",
            "--skip-existing leaves these volumes out, --force replaces the files.",
        )
    _infer_all(tasks, model, resultant, jobs, skip_existing, csv, dicom_seg, where, as_json)


def _tasks(volumes: list[str], out: Path | None, resultant: str, series: list[str]) -> list[Task]:
    """The volumes that are meant, and where their results go."""
    try:
        tasks = found(volumes, out or Path(), resultant, series, warn)
    except ModuleNotFoundError as error:
        detail = f"there are DICOM files, and {error.name} is not installed"
        fail(detail, "Install it: pip install 'pfms[dicom]'.")
    except ValueError as error:
        fail(str(error), "Name files, folders, or a pattern in quotes.")
    if not tasks:
        fail("there is no CT series among these DICOM files", "Name the folder that has it.")
    return tasks


def _infer_one(
    task: Task, model: str, resultant: str, dicom_seg: bool, where: Where, as_json: bool
) -> None:
    from pfms.commands.dicom import Source
    from pfms.commands.progress import display

    target = task.target
    if not target.parent.is_dir():
        fail(f"there is no folder {target.parent}", "Create it, or name another file with -o.")
    with server_client(*where) as client, display() as show:
        try:
            source = Source(task, show)
            job = client.infer(source.volume, model, target, resultant=resultant, on_update=show)
            remarks = source.save_seg(model, job) if dicom_seg else []
        except KeyboardInterrupt:
            fail(*_cancelled(client, show.last), INTERRUPTED)
    if job is None:
        warn("this server keeps no jobs and may not know --resultant: check what it sent")
    for warning in [*(job["warnings"] if job else ()), *remarks]:
        warn(warning)
    if as_json:
        print_json({"output": str(target), "job": job})
    else:
        typer.echo(_summary(target, job))


def _infer_all(
    tasks: list[Task],
    model: str,
    resultant: str,
    jobs: int,
    again: bool,
    csv: Path | None,
    dicom_seg: bool,
    where: Where,
    as_json: bool,
) -> None:
    from pfms.commands.batch import BUSY_SECONDS, RETRY_SECONDS, Batch, read_csv, write_csv
    from pfms.commands.progress import Overall

    known = read_csv(csv) if csv and again else {}
    rows = {task.name: known.get(task.name) for task in tasks}
    calling = server_client(*where, retry_seconds=RETRY_SECONDS, busy_seconds=BUSY_SECONDS)
    with calling as client, Overall(len(tasks)) as show:
        batch = Batch(client, model, resultant, again=again, progress=show, dicom_seg=dicom_seg)
        try:
            for row in batch.run(tasks, jobs):
                before = known.get(row.file)
                rows[row.file] = before if row.skipped and before and not before.error else row
                show.ended(row.file)
                if csv:
                    write_csv(csv, filter(None, rows.values()))
        except KeyboardInterrupt:
            cancelled = batch.cancel()
            remedy = "--skip-existing goes on from here."
            fail(f"interrupted; runs that are cancelled: {cancelled}", remedy, INTERRUPTED)
    table = [row for row in rows.values() if row]
    if as_json:
        print_json({"results": [asdict(row) for row in table]})
    else:
        print_table(
            ("FILE", "ML", "SECONDS", "JOB", "WARNINGS"),
            [(r.file, r.ml, r.seconds, r.job or "-", _remarks(r)) for r in table],
        )
    failed = [row for row in table if row.error]
    if failed:
        remedy = "--skip-existing tries these again."
        unreachable = any(row.error.startswith("unreachable") for row in failed)
        code = UNREACHABLE if unreachable else FAILED
        fail(f"{len(failed)} of {len(table)} volumes have no result", remedy, code)


def _remarks(row: "Row") -> str:
    return row.error or row.warnings or ("has a result" if row.skipped else "")


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
