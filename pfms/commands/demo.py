"""`pfms demo`: one complete run, and what to try next."""

import signal
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Annotated

import typer

from pfms.commands.output import FAILED, INTERRUPTED, fail


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to", metavar="DIR")] = Path("demo"),
    seed: Annotated[
        int | None, typer.Option(min=0, help="Which phantom [default: always the same]")
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Folder of demo_model.pth and phantoms.py", metavar="DIR")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:0")] = "auto",
    keep_running: Annotated[
        bool,
        typer.Option("--keep-running", help="Keep the server running afterwards, until Ctrl-C"),
    ] = False,
) -> None:
    """Segment a phantom with the real plugin behind a real server, step by step."""
    from pfms.client.problems import ClientError
    from pfms.commands.progress import display
    from pfms.local.demo import EXAMPLES, SEED, DemoFailed, this_command, what_next
    from pfms.local.demo import demo as run

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with run(
            out,
            typer.echo,
            examples=examples or EXAMPLES,
            seed=SEED if seed is None else seed,
            device=device,
            watching=display if sys.stderr.isatty() else nullcontext,
        ) as (found, url):
            typer.echo(what_next(out, found, this_command()))
            if keep_running:
                typer.echo(f"\nThe server keeps running at {url}; Ctrl-C stops it.")
                with suppress(KeyboardInterrupt):
                    Event().wait()
    except DemoFailed as error:
        fail(error.detail, error.remedy, FAILED)
    except ClientError as error:
        fail(error.detail, f"{error.remedy} The server's log is {out / 'server.log'}.", FAILED)
    except KeyboardInterrupt:
        fail("interrupted; the server is stopped", code=INTERRUPTED)


def _end(number: int, frame: FrameType | None) -> None:
    """Leave every `with`, so that the server is stopped too."""
    sys.exit(128 + number)
