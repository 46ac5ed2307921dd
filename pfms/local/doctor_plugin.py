"""The checks of `pfms doctor` on the plugin and its Python, each in a process like a run's."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pfms.errors import StartError
from pfms.executors import devices
from pfms.models.check import weights_environment
from pfms.plugin import PLUGIN
from pfms.plugin.command import PluginCommand, plugin_version
from pfms.plugin.verdict import how_it_ended
from pfms.processes.run import child_environment
from pfms.programs import WEIGHTS_CHILD

Status = Literal["ok", "warn", "fail"]

_CHILD_SECONDS = 180
_REPAIR = "`make install` in a clone of pfms builds an environment in which it starts."


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: What was checked.
        status: `fail` if pfms cannot work like this; `warn` if it can, but not well.
        detail: What was found, in one sentence.
        remedy: What to do about it; empty if all is well.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TorchFacts:
    """What torch reports about itself in a process of its own.

    Attributes:
        version: Of torch; empty if it cannot be imported.
        cuda: The CUDA version that it was built for; None for a CPU build.
        works: By device: empty if a sum on it came out right, otherwise what went wrong.
        error: Why torch cannot be queried; empty if it can.
    """

    version: str = ""
    cuda: str | None = None
    works: Mapping[str, str] | None = None
    error: str = ""


def check_plugin(command: PluginCommand, environment: Mapping[str, str]) -> Check:
    """Whether it really starts: to print its help, it imports all that it needs.

    Args:
        command: The plugin's.
        environment: What runs set.
    """
    shown = " ".join(command.argv)
    ended = _ask((*command.argv, "--help"), child_environment(environment))
    if isinstance(ended, str):
        return Check("plugin", "fail", f"{shown}: {ended}", _REPAIR)
    if ended.returncode != 0:
        why = _how_it_ended(ended)
        remedy = _REPAIR
        if "numpy" in why:
            remedy = f"It needs numpy before 2: pip install 'numpy<2'. {_REPAIR}"
        return Check("plugin", "fail", f"{shown} does not start: {why}", remedy)
    version = plugin_version(command)
    return Check("plugin", "ok", f"{shown} starts{f', version {version}' if version else ''}")


_NETWORK = """
import runpy, sys
child = runpy.run_path(sys.argv[1])
child["limit"]()
print(len(child["plugin_network"](sys.argv[2])))
"""


def check_weights_child(command: PluginCommand) -> Check:
    """Whether the program that checks uploads of weights finds the plugin's network."""
    argv = (command.interpreter, "-c", _NETWORK, str(WEIGHTS_CHILD), PLUGIN.network)
    ended = _ask(argv, weights_environment())
    if isinstance(ended, str) or ended.returncode != 0:
        why = ended if isinstance(ended, str) else _how_it_ended(ended)
        return Check(
            "model check",
            "fail",
            f"the plugin's network cannot be imported by {command.interpreter}: {why}",
            f"Uploads of models need it. {_REPAIR}",
        )
    return Check(
        "model check", "ok", f"the plugin's network has {ended.stdout.split()[-1]} tensors"
    )


# --- devices -------------------------------------------------------------------------------

_TORCH = """
import json, torch
works = {}
for name in ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]:
    try:
        right = float((torch.ones(1000, device=name) * 2).sum()) == 2000
        works[name] = "" if right else "it adds up incorrectly"
    except Exception as error:
        works[name] = str(error).strip().splitlines()[0]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "works": works}))
"""


def check_devices(setting: str, command: PluginCommand, environment: Mapping[str, str]) -> Check:
    """Whether the devices of the settings are there, and torch can compute on them."""
    there = devices.available()
    try:
        chosen = devices.choose(setting, there)
    except StartError as error:
        return Check("devices", "fail", error.detail, error.remedy)
    return judge_devices(chosen, devices.driver_gpus(), ask_torch(command, environment))


def ask_torch(command: PluginCommand, environment: Mapping[str, str]) -> TorchFacts:
    """What the torch of the plugin's Python can do."""
    ended = _ask((command.interpreter, "-c", _TORCH), child_environment(environment))
    if isinstance(ended, str):
        return TorchFacts(error=ended)
    try:
        said: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return TorchFacts(error=_how_it_ended(ended))
    return TorchFacts(said["version"], said["cuda"], said["works"])


def judge_devices(chosen: Sequence[str], driver: tuple[int, int], torch: TorchFacts) -> Check:
    """Judge the devices.

    Args:
        chosen: Where runs would go.
        driver: How many GPUs the NVIDIA driver has, and the CUDA major version it supports.
        torch: What torch reports.
    """
    gpus, supported = driver
    if torch.error or torch.works is None:
        detail = f"torch cannot be queried: {torch.error}"
        return Check("devices", "fail", detail, _REPAIR)
    for name in chosen:
        trouble = torch.works.get(name, "torch does not see it")
        if trouble:
            remedy = "Look at nvidia-smi and the driver; PFMS_DEVICES=cpu does without the GPU."
            return Check("devices", "fail", f"{name} does not work: {trouble}", remedy)
    build = f"built for CUDA {torch.cuda}" if torch.cuda else "a CPU build"
    detail = f"runs go to {', '.join(chosen)}; torch {torch.version}, {build}"
    if chosen != ("cpu",) or not gpus:
        return Check("devices", "ok", detail)
    detail += f"; the driver has {gpus} GPU{'s' if gpus > 1 else ''}, unused"
    if torch.cuda is None:
        remedy = "Install a CUDA build of torch: make install without TORCH_INDEX."
    elif int(torch.cuda.split(".")[0]) > supported:
        remedy = f"The driver supports CUDA {supported}.x: update it, or install an older torch."
    else:
        remedy = (
            "PFMS_DEVICES or CUDA_VISIBLE_DEVICES hides them; if that is intended, all is well."
        )
    return Check("devices", "warn", detail, remedy)


def _ask(
    argv: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str] | str:
    """Run a program in exactly this environment; return its output, or why it did not end."""
    with tempfile.TemporaryDirectory(prefix="pfms-doctor-") as folder:
        try:
            process = subprocess.Popen(
                argv,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            return f"it cannot be started ({error.strerror})"
        try:
            out, err = process.communicate(timeout=_CHILD_SECONDS)
        except subprocess.TimeoutExpired:
            return f"it did not end within {_CHILD_SECONDS} seconds"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def _how_it_ended(ended: subprocess.CompletedProcess[str]) -> str:
    return f"it ended {how_it_ended(ended.returncode, ended.stderr or ended.stdout)}"
