"""Chooses a server's executor."""

import importlib.util
import logging
import os
import sys

from pfms.errors import StartError
from pfms.executors.base import Executor
from pfms.executors.cluster import RayExecutor
from pfms.executors.environment import run_environment
from pfms.executors.fresh import FreshExecutor
from pfms.executors.warm import WarmExecutor
from pfms.metrics import Metrics
from pfms.plugin.command import PluginCommand
from pfms.settings import Settings
from pfms.storage.workspace import Workspace

log = logging.getLogger(__name__)


def make_executor(settings: Settings, command: PluginCommand, metrics: Metrics) -> Executor:
    """The executor that the settings name, or `fresh` if the plugin cannot be kept warm.

    Raises:
        StartError: The workspace, whose mark the executor's processes carry, cannot be made.
    """
    workspace = Workspace(settings.workspace)
    workspace.make()
    if settings.executor == "ray":
        need_ray()
        _check_cluster_is_closed(settings)
        told = {
            "address": settings.ray_address,
            "resource": settings.ray_resource,
            "slots": settings.ray_slots,
            "scratch": str(settings.ray_scratch or ""),
            "cpus": len(os.sched_getaffinity(0)),
            "plugin_command": settings.plugin_command,
            "adaptations_off": settings.adaptations_off,
            "runs_per_process": settings.runs_per_process,
            "jobs_per_device": settings.jobs_per_device,
        }
        return RayExecutor(command, told, workspace.mark)
    if settings.executor == "warm":
        why_not = _why_not_warm(command)
        if not why_not:
            return WarmExecutor(
                command,
                run_environment(settings, workspace, settings.devices),
                workspace.mark,
                without=settings.adaptations_off,
                runs_per_process=settings.runs_per_process,
                on_restart=metrics.parent_restarts,
            )
        log.warning("%s: each run starts a fresh process (PFMS_EXECUTOR=fresh)", why_not)
    return FreshExecutor(workspace.mark)


def _check_cluster_is_closed(settings: Settings) -> None:
    """Ray runs whatever code it is sent, by everyone who reaches it: see that it asks for a token.

    Raises:
        StartError: It does not, and the operator has not said that this is wanted.
    """
    if not settings.ray_address or os.environ.get("RAY_AUTH_MODE") == "token":
        return
    if not settings.insecure:
        raise StartError(
            "A Ray cluster without token authentication runs the code of everyone who reaches it.",
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN on every node and here (docs/scale.md), or "
            "say with --insecure (PFMS_INSECURE=true) that its network is closed to all others.",
        )
    log.warning("INSECURE: everyone who reaches the Ray cluster may run code on its nodes")


def _why_not_warm(command: PluginCommand) -> str:
    if command.kind == "foreign":
        return f"'{command.argv[0]}' is not a console script of this Python"
    if sys.platform != "linux":
        return "the plugin can be kept ready and forked only on Linux"
    return ""


def need_ray() -> None:
    """See that Ray, which is an extra, is installed.

    Raises:
        StartError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise StartError(
            "PFMS_EXECUTOR=ray needs Ray, which is not installed.",
            "Install it: `make install-ray`, or pip install 'pfms[ray]'.",
        )
