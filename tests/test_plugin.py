"""The plugin's command line, its environment and its stages."""

from pathlib import Path

import pytest

from pfms.errors import UnsupportedNifti
from pfms.plugin import PLUGIN
from pfms.plugin.adaptations import ADAPTATIONS, Adaptation
from pfms.plugin.types import HostFacts

COMPLETE_LOG = Path(__file__).parent / "logs" / "complete.txt"  # of the real plugin


def test_the_command_line_is_the_plugins() -> None:
    assert PLUGIN.argv(("/opt/spleenseg",), "cuda:1") == (
        *("/opt/spleenseg", "--mode", "inference", "--device", "cuda:1"),
        *("--useModel", "model.pth", "input", "output"),
    )


def test_logits_are_requested_by_an_option_before_the_folders() -> None:
    argv = PLUGIN.argv(("python", "a b.py"), "cpu", "logits")
    assert argv[:2] == ("python", "a b.py")
    assert argv[-3:] == ("--logTransformVols", "input", "output")


def test_the_environment_has_what_every_run_needs_and_nothing_else() -> None:
    chosen = PLUGIN.environment()
    assert chosen["MPLBACKEND"] == "Agg"
    assert chosen["PYTHONUNBUFFERED"] == "1"
    assert not {"USER", "HOME", "MPLCONFIGDIR", "OMP_NUM_THREADS"} & chosen.keys()


def test_a_missing_user_name_and_an_unwritable_home_are_made_up_for() -> None:
    chosen = PLUGIN.environment(HostFacts(has_user=False, spare_home="/spare"))
    assert chosen["USER"] == "pfms"
    assert chosen["HOME"] == "/spare"
    assert chosen["MPLCONFIGDIR"] == "/spare/matplotlib"


def test_a_run_that_shares_the_cores_is_told_how_many_to_use() -> None:
    chosen = PLUGIN.environment(threads=3)
    assert chosen["OMP_NUM_THREADS"] == chosen["MKL_NUM_THREADS"] == "3"


@pytest.mark.parametrize("step", ADAPTATIONS, ids=lambda step: step.name)
def test_each_adaptation_says_why_and_can_be_left_out(step: Adaptation) -> None:
    assert step.why
    assert step.environment.items() <= PLUGIN.environment().items()
    assert not step.environment.keys() & PLUGIN.environment(without=[step.name]).keys()


def test_an_unknown_adaptation_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="no such adaptation: magic"):
        PLUGIN.environment(without=["magic"])


def test_the_allocator_keeps_its_memory() -> None:
    assert PLUGIN.environment()["MALLOC_TRIM_THRESHOLD_"] == "-1"


@pytest.mark.parametrize(
    ("last_words", "stage"),
    [
        ("", "loading"),
        ("  0%|          | 0/1 [", "loading"),
        ("Loading dataset: 100%", "inferring"),
        ("self.check_worker_number_rationality()", "inferring"),
        ("[1]--------> novel inference", "resampling"),
        ("writing: output/inference/input/input_seg.nii.gz", "writing"),
        ("novel inference output save:  output/inference/output.nii.gz", "writing"),
    ],
)
def test_the_stage_is_found_in_the_lines_of_a_real_log(last_words: str, stage: str) -> None:
    text = COMPLETE_LOG.read_text(encoding="utf-8")
    assert last_words in text
    assert PLUGIN.stage_of(text[: text.index(last_words) + len(last_words)]) == stage


def test_logits_are_refused_for_a_volume_that_the_plugin_cannot_draw() -> None:
    with pytest.raises(UnsupportedNifti) as refusal:
        PLUGIN.check_can_make("logits", (64, 64, 20))
    assert "20 slices" in refusal.value.detail
    PLUGIN.check_can_make("logits", (64, 64, 21))
    PLUGIN.check_can_make("onehot", (64, 64, 20))
