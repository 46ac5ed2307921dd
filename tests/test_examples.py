"""The examples of the documentation run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Server, seed_model, start
from tests.examples import PAGES, REAL, blocks, run, script
from tools.manual import reference


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the fake plugin, which any page may use as it likes."""
    one = start(tmp_path_factory.mktemp("examples") / "workspace")
    yield one
    one.stop()


# tests/test_replay.py, which has the real plugin, runs the other one.
FAKE = [page for page in PAGES if page != REAL and blocks(page)]


@pytest.mark.parametrize("page", FAKE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page: Path, serving: Server, tmp_path: Path) -> None:
    for model in ("demo", "myspleen"):  # another page may have removed them
        seed_model(serving.workspace, model)
    done = run(script(blocks(page)), serving, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_of_every_call_runs(serving: Server, tmp_path: Path) -> None:
    # What removes something goes last.
    calls = sorted(reference.operations(), key=lambda each: each[0] == "DELETE")
    assert len(calls) > 20
    lines = []
    for method, path, call in calls:
        line = reference.example(method, path, call).replace("curl ", "curl -sS ")
        if call["operationId"] == "infer":
            lines.append(f"JOB=$({line} -w %header{{x-pfms-job}})")
        else:
            lines.append(line if "--fail" in line else f"{line} --fail")
    done = run("\n".join(["set -eux", *lines]), serving, tmp_path)
    assert done.returncode == 0, done.stderr
