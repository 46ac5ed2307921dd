"""What a run sets on top of the server's environment: it depends on settings and machine."""

import os

from pfms.executors.devices import is_cpu
from pfms.plugin import PLUGIN
from pfms.plugin.command import host_facts
from pfms.settings import Settings
from pfms.storage.workspace import Workspace


def run_environment(settings: Settings, workspace: Workspace, device: str) -> dict[str, str]:
    """What a run on a device sets on top of the server's own environment."""
    return PLUGIN.environment(
        host_facts(workspace.root / "home"),
        threads=share_of_cores(device, settings.jobs_per_device),
        without=settings.adaptations_off,
    )


def share_of_cores(device: str, jobs_per_device: int) -> int | None:
    """Threads for a run that shares the CPU with others; None if it may use all cores."""
    if not is_cpu(device) or jobs_per_device == 1:
        return None
    return max(1, len(os.sched_getaffinity(0)) // jobs_per_device)
