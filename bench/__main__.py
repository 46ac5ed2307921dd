"""`python -m bench [NAMES] [--quick] [--list]`: measure, print, and write `bench/results/`."""

import argparse
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.chart import draw
from bench.figures import Figure, Skipped, Task, number
from bench.machine import machine, machine_line

RESULTS = Path(__file__).parent / "results"

# In this order; each is a module with `measure(task)`.
BENCHES = (
    "start",
    "page",
    "latency",
    "queued",
    "records",
    "events",
    "access",
    "upload",
    "throughput",
    "own_share",
    "soak",
    "memory",
    "adaptations",
    "stages",
    "speed",
    "gpu",
    "scale",
)


def main() -> int:
    """Exit code 0: every target is met; 1: one is missed, or a bench failed; 2: wrong usage."""
    options = _arguments()
    if options.list:
        for name in BENCHES:
            print(f"{name:12} {_first_line(name)}")
        return 0
    # So that no server outlives a bench that is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # In a separate folder, so that quick results do not replace real ones.
    results = RESULTS / "quick" if options.quick else RESULTS
    results.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(machine_line(machine()), highlight=False)
    good = True
    for name in options.names or BENCHES:
        console.rule(f"{name}: {_first_line(name)}", align="left")
        good &= _run(name, options, results, console)
    draw(results)
    console.print(f"Written to {results}/", highlight=False)
    return 0 if good else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure what pfms promises.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benches (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="see that they work; the numbers mean less"
    )
    parser.add_argument(
        "--off",
        metavar="NAMES",
        type=lambda names: tuple(filter(None, names.split(","))),
        help="stages: the adaptations that the runs of before leave out (default: the newer ones)",
    )
    parser.add_argument("--list", action="store_true", help="say which there are")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    return options


def _run(name: str, options: argparse.Namespace, results: Path, console: Console) -> bool:
    """Measure, print and write one; whether nothing is amiss."""
    started = time.monotonic()
    before = os.getloadavg()[0]
    if before > len(os.sched_getaffinity(0)):
        console.print(f"Others use this machine (load {before:.1f}): the figures suffer from it.")
    figures: list[Figure] = []
    skipped = failed = None
    folder = Path(tempfile.mkdtemp(prefix=f"pfms-bench-{name}-"))
    try:
        task = Task(folder / "work", options.quick, options.off)
        for figure in importlib.import_module(f"bench.{name}").measure(task):
            figures.append(figure)  # one by one: a bench that yields them keeps those it has
    except Skipped as reason:
        skipped = str(reason)
        console.print(f"Skipped: {skipped}.", highlight=False)
    except Exception as error:  # one that fails keeps no other from running
        failed = f"{type(error).__name__}: {error}"
        console.print(f"[red]Failed.[/red] {traceback.format_exc()}", highlight=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if figures:
        console.print(_table(figures))
    result = {
        "name": name,
        "quick": options.quick,
        "seconds": round(time.monotonic() - started, 1),
        "machine": machine(),
        "load_before": before,
        "skipped": skipped,
        "failed": failed,
        "figures": [figure.to_dict() for figure in figures],
    }
    if not skipped:
        (results / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return failed is None and all(figure.met is not False for figure in figures)


def _table(figures: list[Figure]) -> Table:
    table = Table("figure", show_edge=False, pad_edge=False)
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    table.add_column("met")
    table.add_column("note", style="dim")
    words = {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}
    for figure in figures:
        measured = f"{number(figure.value)} {figure.unit}".strip()
        table.add_row(figure.name, measured, figure.target, words[figure.met], figure.note)
    return table


def _first_line(name: str) -> str:
    return (importlib.import_module(f"bench.{name}").__doc__ or "").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
