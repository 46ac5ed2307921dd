"""The devices that a run can use, found without importing torch or starting CUDA."""

import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from pfms.errors import StartError

log = logging.getLogger(__name__)

CPU = "cpu"


def torch_cuda_version() -> str | None:
    """The CUDA version that the installed torch was built for, or None for a CPU build.

    NVML also sees GPUs that a CPU build of torch cannot use; `torch/version.py` tells the builds
    apart.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def driver_gpus() -> tuple[int, int]:
    """The number of GPUs and the CUDA major version that the driver supports, else (0, 0)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pynvml
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0, 0
    try:
        version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return pynvml.nvmlDeviceGetCount(), version // 1000
    except pynvml.NVMLError as error:
        log.warning("the NVIDIA driver does not answer: %s", error)
        return 0, 0
    finally:
        pynvml.nvmlShutdown()


def visible(gpus: int, setting: str | None) -> int:
    """How many of `gpus` GPUs a process sees if its CUDA_VISIBLE_DEVICES is `setting`."""
    if setting is None:
        return gpus
    names = [name.strip() for name in setting.split(",")]
    # CUDA stops at the first name that is not a GPU, such as -1.
    good = 0
    for name in names:
        if not name or name.startswith("-") or (name.isdigit() and int(name) >= gpus):
            break
        good += 1
    return min(good, gpus)


def available() -> tuple[str, ...]:
    """Every device that a run can use, the best first; the CPU is always last."""
    built_for = torch_cuda_version()
    gpus, driver = driver_gpus()
    if gpus and built_for and int(built_for.split(".")[0]) > driver:
        log.warning("torch is built for CUDA %s, the driver supports %s.x", built_for, driver)
        gpus = 0
    if not built_for:
        gpus = 0
    gpus = visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return (*(f"cuda:{i}" for i in range(gpus)), CPU)


def is_cpu(device: str) -> bool:
    """Whether it is the CPU, of this machine or of a node."""
    return device.rpartition("/")[2] == CPU


def as_the_plugin_says(device: str) -> str:
    """How the plugin is told of a device: to a run on a node, its own GPU is the only one."""
    if is_cpu(device):
        return CPU
    return "cuda:0" if "/" in device else device


def choose(setting: str, there: Sequence[str]) -> tuple[str, ...]:
    """The devices that PFMS_DEVICES, or a call, asks for.

    Args:
        setting: `auto` (every GPU, else every CPU) or names separated by commas; `cuda` is
            `cuda:0`. A name without a node is that device of every node.
        there: What the executor has; if that is nothing, nothing is chosen.

    Raises:
        StartError: One of them is not available.
    """
    if not there:
        return ()
    if setting.strip() == "auto":
        return tuple(name for name in there if not is_cpu(name)) or tuple(there)
    chosen = []
    for raw in setting.split(","):
        name = "cuda:0" if raw.strip() == "cuda" else raw.strip()
        found = [one for one in there if name in (one, one.rpartition("/")[2])]
        if not found:
            raise StartError(
                f"The device {name[:40]!r} is not available, only {', '.join(there)}.",
                "Set PFMS_DEVICES to one of these, or to auto.",
            )
        chosen += [one for one in found if one not in chosen]
    return tuple(chosen)
