"""The program that times a run by stage: it meets every stage of the installed plugin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.command_line import make_tree
from bench.load import DEMO_MODEL
from bench.stage_timer import STAGES
from pfms.plugin import PLUGIN
from pfms.plugin.adaptations import adaptations
from tests.conftest import ROOT, nifti_bytes


@pytest.mark.real
@pytest.mark.parametrize("adapted", [False, True])
def test_every_stage_of_a_run_is_timed_and_they_add_up_to_it(adapted: bool, tmp_path: Path) -> None:
    make_tree(tmp_path, nifti_bytes((40, 40, 24)), DEMO_MODEL)
    names = [step.name for step in adaptations()] if adapted else []
    said = subprocess.run(
        [sys.executable, "-m", "bench.stage_timer", str(tmp_path), "cpu", *names],
        cwd=ROOT,
        env={**os.environ, **PLUGIN.environment()},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    run = json.loads(said.splitlines()[-1])
    assert run["code"] == 0, (tmp_path / "plugin.log").read_text()
    missing = set(STAGES) - set(run["stages"])
    assert not missing or adapted, "an adaptation may do the work of two stages in one"
    stages = run["stages"].values()
    assert all(stage["seconds"] >= 0 for stage in stages)
    assert run["seconds"] <= sum(stage["seconds"] for stage in stages) + 1e-6
    assert run["peak"] == max(stage["peak"] for stage in stages)
