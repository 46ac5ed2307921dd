"""A signal in the first moments of a server: it ends as one that runs does, and leaves nothing."""

import contextlib
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pfms.processes.marks import WORKSPACE_MARK, find_marked
from pfms.storage.workspace import Workspace
from tests.conftest import PLUGINS, ROOT, seed_model

MOMENTS = 730  # a start has some more
KINDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def begin(workspace: Path, *program: str) -> subprocess.Popen[str]:
    seed_model(workspace)
    settings = {
        "PFMS_WORKSPACE": str(workspace),
        "PFMS_PLUGIN_COMMAND": str(PLUGINS / "ok.py"),
        "PFMS_DEVICES": "cpu",
        "PFMS_MIN_FREE_BYTES": "0",
        "PFMS_EXECUTOR": "fresh",
    }
    return subprocess.Popen(
        [sys.executable, *program, "serve", "--port", "0"],
        cwd=ROOT,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def leaves_nothing(workspace: Path) -> None:
    place = Workspace(workspace)
    assert find_marked(WORKSPACE_MARK, place.mark) == []
    if place.uploads.exists():
        assert list(place.uploads.iterdir()) == []
    place.open()  # nobody holds it
    place.close()


def check_at(moment: int, times: int, kind: signal.Signals, workspace: Path) -> None:
    program = ("-m", "tests.signalled_server", kind.name, str(moment), str(times))
    with begin(workspace, *program) as server:
        said, log = server.communicate(timeout=60)
    assert "Traceback" not in log, (moment, log)
    assert server.returncode == 0, (moment, log)
    assert said == "" or said.startswith("pfms listens on ")
    leaves_nothing(workspace)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("part", range(3))
def test_a_signal_in_the_first_moments_is_an_orderly_stop(
    tmp_path: Path, kind: signal.Signals, part: int
) -> None:
    moment = random.Random(f"{kind} {part}").randint(1, MOMENTS // 3) + part * MOMENTS // 3
    check_at(moment, 1, kind, tmp_path / "workspace")


def test_signals_at_all_of_the_first_moments_are_an_orderly_stop(tmp_path: Path) -> None:
    check_at(1, MOMENTS, signal.SIGTERM, tmp_path / "workspace")


def check_after(seconds: float, workspace: Path) -> None:
    """Whatever Python was doing then; before there is a server, the signal itself ends it."""
    with begin(workspace, "-m", "pfms") as server:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(seconds)
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    assert "Traceback" not in log, (seconds, log)
    assert server.returncode in (0, -signal.SIGTERM), (seconds, log)
    leaves_nothing(workspace)


@pytest.mark.parametrize("part", range(4))
def test_a_signal_after_some_time_is_an_orderly_stop(tmp_path: Path, part: int) -> None:
    check_after(random.Random(part).uniform(0.3, 1.5), tmp_path / "workspace")


@pytest.mark.every
@pytest.mark.timeout(1800)
def test_a_signal_at_any_of_many_moments_is_an_orderly_stop(tmp_path: Path) -> None:
    for n, moment in enumerate(range(1, MOMENTS, 9)):
        check_at(moment, 1, KINDS[n % len(KINDS)], tmp_path / f"{n}")
        check_after(0.02 * n, tmp_path / f"{n} by time")
