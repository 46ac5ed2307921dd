"""`pfms compare`: how alike segmentations are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfms.commands.output import (
    DEFAULT_SERVER,
    INTERRUPTED,
    CaOption,
    JsonOption,
    ServerOption,
    TokenFileOption,
    Where,
    fail,
    print_json,
    print_table,
    server_client,
)

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

    Pairs = list[tuple[str, Nifti1Image, Nifti1Image]]


def compare(
    first: Annotated[
        Path,
        typer.Argument(
            help="A label map or a folder of them; with --model, a CT volume",
            metavar="A",
            exists=True,
        ),
    ],
    second: Annotated[
        Path | None,
        typer.Argument(help="The label map or folder to compare it with", metavar="B", exists=True),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Two models to segment the volume A with"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write a page with a picture of the worst, too", metavar="HTML", dir_okay=False
        ),
    ] = None,
    ct: Annotated[
        Path | None,
        typer.Option(
            help="The CT volume of A and B, or the folder of theirs, to show in the picture",
            exists=True,
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="Write the table to this file, too", metavar="FILE", dir_okay=False),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two label maps, two folders of them, or what two models make of a volume.

    Dice, volumes in ml, and the distance between the surfaces: mean, 95th percentile, largest.
    """
    try:
        from pfms.local import compare as local
        from pfms.local import compare_report as page
    except ModuleNotFoundError as error:
        fail(f"{error.name} is not installed", "Install it: pip install 'pfms[compare]'.")
    if (second is None) == (models is None) or (models is not None and len(models) != 2):
        fail("two things are compared", "Name A and B, or A and --model twice.")
    if second is not None and first.is_dir() != second.is_dir():
        fail("a folder is compared with a folder", "Name two files, or two folders.")
    if ct is not None and (report is None or second is None or ct.is_dir() != first.is_dir()):
        detail = "--ct is for the picture of a report about two files, or two folders"
        fail(detail, "Add --report; with folders name a folder. --model has its CT already.")
    try:
        if second is None:
            images = _made(first, models or [], Where(server, ca, token_file))
        elif second.is_dir():
            images = [
                (name, local.load(a), local.load(b)) for name, a, b in local.pairs(first, second)
            ]
        else:
            images = [(first.name, local.load(first), local.load(second))]
        names = [name for name, *_ in images]
        if ct is not None and ct.is_dir():
            cts = local.belonging(ct, names)
        else:
            volume = first if second is None else ct
            cts = dict.fromkeys(names, volume) if volume else {}
        found = [local.compare(*each) for each in images]
        if report is not None:
            worst = min(range(len(found)), key=lambda n: found[n].dice)
            name, one, other = images[worst]
            shown = page.picture(one, other, local.load(cts[name]) if cts else None)
            report.write_text(page.report(found, shown))
    except local.CannotCompare as error:
        fail(error.detail, error.remedy)
    if csv is not None:
        _write_csv(csv, [each.to_dict() for each in found])
    if as_json:
        print_json({"comparisons": [each.to_dict() for each in found]})
    else:
        print_table(page.HEAD, [page.cells(each) for each in found])


def _made(volume: Path, models: list[str], where: Where) -> "Pairs":
    """What both models make of a volume."""
    from pfms.client.problems import problem_of
    from pfms.commands.progress import display

    if volume.is_dir():
        fail(f"{volume} is a folder", "--model takes one volume.")
    with server_client(*where) as client, display() as show:
        try:
            jobs = [client.submit(volume, model, on_update=show)["id"] for model in models]
            made = []
            for job_id in jobs:
                job = client.wait(job_id, show)
                if job["error"] is not None:
                    raise problem_of(job)
                made.append(client.result(job_id).image)
        except KeyboardInterrupt:
            fail("interrupted", "`pfms watch` shows what still runs.", INTERRUPTED)
    return [(" and ".join(models), made[0], made[1])]


def _write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    import csv

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
