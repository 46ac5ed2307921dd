"""A separate program that runs the plugin several times in one process, on a device, by stage.

`-m bench.on_device ROOT DEVICE RUNS` loads the plugin with all adaptations, as the warm executor
does, and forks. The child starts the device, which is its first call of CUDA, and then calls the
plugin's `main()` on the tree of a job at ROOT, RUNS times: the first run is that of a process that
was just forked, the others are those of a process that keeps its context. It prints a JSON line:

    {device, uuid, runs}   what the device calls itself, and what `stage_timer` says of each run,
                           with {reserved}: the peak of torch's memory on the device, bytes (0 on a
                           CPU), to which its context comes

The stages are those of `stage_timer`, the start of the device in the first run, and the copies to
the device and back. The clock is read when the device has finished what it was given. A run that
fails is the last.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from bench import stage_timer
from bench.stage_timer import FUNCTIONS, Stopwatch, put_around
from pfms.plugin import PLUGIN
from pfms.plugin.adaptations import ADAPTATIONS
from pfms.plugin.command import resolve_command
from pfms.programs import warm_plugin

DEVICE = "start of the device"
FIRST_CALL = "first call of the device in a forked process"
TO_DEVICE, FROM_DEVICE = "to the device", "from the device"
_FORWARD = "network: forward"
_NETWORK = stage_timer.STAGES.index("network")
STAGES = (
    DEVICE,
    *stage_timer.STAGES[:_NETWORK],
    *(TO_DEVICE, "network", _FORWARD, FROM_DEVICE),
    *stage_timer.STAGES[_NETWORK + 1 :],
)
"""In the order of a run."""

_FUNCTIONS = (
    *FUNCTIONS,
    ("weights", "torch.nn", "Module.load_state_dict", ()),
    (_FORWARD, "monai.networks.nets.unet", "UNet.forward", ("network",)),
)


def time_transfers(watch: Stopwatch) -> None:
    """Time each copy of a tensor between the memory of the machine and that of the device."""
    import torch

    to, cpu = torch.Tensor.to, torch.Tensor.cpu
    to_device, from_device = (watch.timed(stage, to, ()) for stage in (TO_DEVICE, FROM_DEVICE))

    def timed_to(tensor: Any, *args: Any, **named: Any) -> Any:
        target = torch._C._nn._parse_to(*args, **named)[0]
        if target is None or target.type == tensor.device.type:
            return to(tensor, *args, **named)
        return (from_device if target.type == "cpu" else to_device)(tensor, *args, **named)

    def timed_cpu(tensor: Any, *args: Any, **named: Any) -> Any:
        if args or named or tensor.device.type == "cpu":
            return cpu(tensor, *args, **named)
        return from_device(tensor, "cpu")

    torch.Tensor.to, torch.Tensor.cpu = timed_to, timed_cpu


def _report(call: Callable[[], object], device: str, runs: int) -> dict[str, Any]:
    import torch

    on_gpu = device != "cpu"

    def clock() -> float:
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    started = time.perf_counter()
    torch.zeros(1, device=device)
    start = {"seconds": clock() - started}
    known = torch.cuda.get_device_properties(device) if on_gpu else None
    report: dict[str, Any] = {
        "device": known.name if known else device,
        "uuid": str(getattr(known, "uuid", "")),
        "runs": [],
    }
    watch = Stopwatch(clock)
    put_around(watch, _FUNCTIONS)
    time_transfers(watch)
    for _ in range(runs):
        watch.start_anew()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        started = clock()
        code = warm_plugin.exit_code_of(call)
        reserved = torch.cuda.max_memory_reserved(device) if on_gpu else 0
        run = {"code": code, **watch.result(started, clock()), "reserved": reserved}
        report["runs"].append(run)
        if code:
            break
    report["runs"][0]["stages"][DEVICE] = start
    return report


def main(root: str, device: str, runs: str) -> None:
    """Load, fork, run, report."""
    command = resolve_command(PLUGIN.name)
    names = [step.name for step in ADAPTATIONS]
    call, _ = warm_plugin.load({"entry_point": command.entry_point, "adaptations": names})
    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    try:
        report = os.dup(1)
        os.chdir(root)
        log = os.open("plugin.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(log, number)
        sys.argv = list(PLUGIN.argv(command.argv, device))
        os.write(report, json.dumps(_report(call, device, int(runs))).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
