"""Runs the command line as a user does: as a separate process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "pfms")


def environment(**settings: str) -> dict[str, str]:
    """This environment, with no settings of pfms but these (`server=URL` is PFMS_SERVER)."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("PFMS_")}
    return own | {f"PFMS_{name.upper()}": text for name, text in settings.items()}


def pfms(
    *arguments: str | Path, cwd: Path, code: int = 0, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, which must be `code`, and never with a traceback."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextmanager
def running(*arguments: str | Path, cwd: Path, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs; it is ended if the test does not."""
    # What is ignored here would be ignored there, and Ctrl-C with it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], cwd=cwd, env=environment(**settings), **options
    )
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    """Wait for the end, which has to be `code`; the rest of stdout and stderr."""
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, (process.returncode, out, err)
    assert "Traceback" not in err, err
    return out, err
