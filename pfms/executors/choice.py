"""Chooses a server's executor."""

import importlib.util
import logging
import sys

from pfms.errors import StartError
from pfms.executors.base import Executor
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
