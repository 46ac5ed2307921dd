"""Why a run ended, from a table of real logs."""

from pathlib import Path
from typing import Literal

import pytest

from pfms.errors import by_code
from pfms.plugin import PLUGIN
from pfms.plugin.types import PluginExit
from pfms.plugin.verdict import Verdict, cause_of, final_exception, how_it_ended, one_line

LOGS = Path(__file__).parent / "logs"  # of the real plugin, shortened, with other folder names

CUDA_OUT_OF_MEMORY = """\
Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/torch/nn/modules/conv.py", line 726, in forward
    return F.conv3d(
           ^^^^^^^^^
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.95 GiB. GPU 0 has a total capacity \
of 7.79 GiB of which 1.21 GiB is free.
"""
NUMPY_OUT_OF_MEMORY = """\
Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/nibabel/volumeutils.py", line 466, in array_from_file
numpy.core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array with shape \
(1000, 1000, 1000) and data type float64
"""


def log(name: str) -> str:
    return (LOGS / f"{name}.txt").read_text(encoding="utf-8")


def ended(
    code: int | None = None,
    signal: int | None = None,
    ended_by: Literal["itself", "time-limit", "executor", "not-started"] = "itself",
    message: str = "",
) -> PluginExit:
    return PluginExit(code, signal, 12.3, ended_by, message)


def test_exit_code_0_with_a_segmentation_is_a_success() -> None:
    assert cause_of(ended(0), log("complete"), onehot_written=True) == Verdict(None)


def test_exit_code_0_without_a_segmentation_is_a_bad_result() -> None:
    verdict = cause_of(ended(0), log("complete"), onehot_written=False)
    assert verdict.error == "bad-result"
    assert not verdict.ok


def test_a_short_stack_is_a_success_with_a_warning() -> None:
    verdict = PLUGIN.cause_of(ended(1), log("short_stack"), onehot_written=True)
    assert verdict.ok
    assert "fewer than 21 slices" in verdict.warning


@pytest.mark.parametrize(
    ("end", "text", "written"),
    [
        (ended(1), log("short_stack"), False),
        (ended(2), log("short_stack"), True),
        (ended(1), log("short_stack") + "\nTraceback (most recent call last):\nOops: more", True),
        (ended(1), log("short_stack").replace("in plot_infer", "in elsewhere"), True),
        (ended(1), log("short_stack").replace("index 20", "index 80"), True),
    ],
    ids=["nothing written", "another code", "another error after it", "elsewhere", "another index"],
)
def test_what_only_looks_like_a_short_stack_is_a_failure(
    end: PluginExit, text: str, written: bool
) -> None:
    assert PLUGIN.cause_of(end, text, written).error == "plugin-failed"


@pytest.mark.parametrize(
    ("name", "end", "error", "detail"),
    [
        ("host_memory_network", ended(1), "out-of-memory", "tried to allocate 32768000 bytes"),
        ("host_memory_reading", ended(1), "out-of-memory", "tried to allocate 51662208 bytes"),
        ("worker_killed", ended(1), "out-of-memory", "is killed by signal: Killed."),
        ("oom_killed", ended(signal=9), "out-of-memory", "(SIGKILL)"),
        ("oom_killed", ended(137), "out-of-memory", "(SIGKILL)"),
        ("worker_bus_error", ended(1), "no-shared-memory", "us error"),
        ("shm_semaphore", ended(1), "no-shared-memory", "OSError: [Errno 28] No space left"),
        ("shm_tensor", ended(1), "no-shared-memory", "unable to allocate shared memory(shm)"),
        ("oom_killed", ended(signal=7), "no-shared-memory", "(SIGBUS)"),
        ("disk_full_copying", ended(1), "disk-full", "'output/inference/orig.nii.gz'"),
        ("disk_full_saving", ended(1), "disk-full", "OSError: [Errno 28] No space left on device"),
        ("disk_full_plotting", ended(1), "disk-full", "OSError: [Errno 28] No space left"),
        ("no_model", ended(1), "plugin-failed", "IsADirectoryError: [Errno 21] Is a directory"),
        ("no_cuda", ended(1), "plugin-failed", "AssertionError: Torch not compiled with CUDA"),
        ("no_threads", ended(1), "plugin-failed", "RuntimeError: can't start new thread"),
        ("worker_segfault", ended(1), "plugin-failed", "RuntimeError: DataLoader worker (pid(s)"),
        ("other_network", ended(1), "plugin-failed", "state_dict for UNet: Missing key(s) in"),
        ("complete", ended(signal=11), "plugin-failed", "(SIGSEGV)"),
        ("complete", ended(139), "plugin-failed", "(SIGSEGV)"),
        ("complete", ended(signal=40), "plugin-failed", "(signal 40)"),
        ("complete", ended(3), "plugin-failed", "exit code 3"),
    ],
)
def test_the_cause_is_found_in_a_real_log(
    name: str, end: PluginExit, error: str, detail: str
) -> None:
    verdict = cause_of(end, log(name), onehot_written=False)
    assert verdict.error == error
    assert detail in verdict.detail
    assert "\n" not in verdict.detail
    assert "/opt" not in verdict.detail
    assert by_code(error).code == error


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (CUDA_OUT_OF_MEMORY, "gpu-out-of-memory"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "gpu-out-of-memory"),
        (NUMPY_OUT_OF_MEMORY, "out-of-memory"),
        ("Traceback (most recent call last):\nMemoryError", "out-of-memory"),
        ("OSError: [Errno 12] Cannot allocate memory", "out-of-memory"),
        ("OSError: [Errno 28] No space left on device: '/dev/shm/pym-1-x'", "no-shared-memory"),
        ("OSError: [Errno 122] Disk quota exceeded: 'output/inference'", "disk-full"),
    ],
)
def test_causes_that_cannot_be_produced_here_are_recognised_by_their_messages(
    text: str, error: str
) -> None:
    assert cause_of(ended(1), text, onehot_written=False).error == error


@pytest.mark.parametrize(
    ("end", "error", "detail"),
    [
        (ended(signal=15, ended_by="time-limit"), "timed-out", "It was ended after 12 seconds."),
        (ended(ended_by="executor", message="The parent died."), "interrupted", "The parent died."),
        (ended(ended_by="not-started", message="'x' is not there."), "plugin-failed", "'x' is not"),
        (ended(ended_by="not-started"), "plugin-failed", "It could not be started."),
    ],
)
def test_an_end_imposed_from_outside_counts_for_more_than_the_log(
    end: PluginExit, error: str, detail: str
) -> None:
    verdict = cause_of(end, CUDA_OUT_OF_MEMORY, onehot_written=True)
    assert verdict.error == error
    assert verdict.detail.startswith(detail)


def test_the_detail_of_a_failure_is_the_final_exception_without_folders() -> None:
    text = """\
Traceback (most recent call last):
  File "/opt/a.py", line 1
KeyError: 'first'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/srv/ws/jobs/2026-01-02-03-04-05-ab/x.py", line 7, in y
FileNotFoundError: [Errno 2] No such file: '/srv/ws/jobs/2026-01-02-03-04-05-ab/input/model.pth'
bye
"""
    verdict = cause_of(ended(1), text, onehot_written=False)
    assert verdict.detail == "FileNotFoundError: [Errno 2] No such file: 'input/model.pth'"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("no traceback", ""),
        ("Traceback (most recent call last):\n  File x\n    code\nE: one\nafter", "E: one"),
        ("Traceback (most recent call last):\n  File x\nE: two:\n\tfirst\n", "E: two: first"),
        ("Traceback (most recent call last):\n  File x", ""),
    ],
)
def test_the_final_exception_is_found_in_the_last_traceback(text: str, line: str) -> None:
    assert final_exception(text) == line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot open /etc/pfms/secret.conf", "cannot open secret.conf"),
        ("cannot open '/a folder/with spaces/x.nii'", "cannot open 'x.nii'"),
        ('open("/a/b c"): no', 'open("b c"): no'),
        ("/srv/ws/jobs/2026-ab/output/inference", "output/inference"),
        ("path=/usr/lib/x.so:/usr/lib/y.so", "path=x.so:y.so"),
        ("in file:///etc/passwd", "in file:passwd"),
        ("see https://pytorch.org/docs/a.html", "see https://pytorch.org/docs/a.html"),
        ("input/imagesTs and 3/4 and ./x/y", "input/imagesTs and 3/4 and ./x/y"),
        ("<monai.Spacingd object at 0x7ff18a416210>", "<monai.Spacingd object>"),
        ("two\nlines\r\tand\x1b[31m red\x00", "two lines and [31m red"),
    ],
)
def test_a_detail_is_one_line_without_folders_of_this_server(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_paths_in_a_given_root_become_relative_to_it() -> None:
    assert one_line("no /my data/run 1/input/x", root="/my data/run 1/") == "no input/x"


def test_a_long_detail_is_cut() -> None:
    assert len(one_line("x" * 1000)) == 300


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (3, "", "with exit code 3"),
        (1, "first\nKilled\n\n", "with exit code 1: Killed"),
        (-9, "", "by SIGKILL"),
        (-11, "it was /opt/lib/x.so\n", "by SIGSEGV: it was x.so"),
        (-200, "", "by signal 200"),
        (None, "", "with exit code None"),
        (1, "Traceback (most recent call last):\n  x\nImportError: a\nnote\n", "1: ImportError: a"),
        (
            -6,
            "Fatal Python error: Aborted\n\nCurrent thread 0x1:\n  File x\nExtension modules: x",
            "by SIGABRT: Fatal Python error: Aborted",
        ),
    ],
)
def test_how_a_program_ended_includes_its_last_message(
    code: int | None, said: str, words: str
) -> None:
    told = how_it_ended(code, said)
    assert words in told
    assert len(how_it_ended(code, said + "x" * 9999)) < 400
