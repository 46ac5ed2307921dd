"""What runs on a node: an actor for a slot, with an executor as on the server's own machine."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfms.aio import in_thread
from pfms.cluster.parcels import packed
from pfms.cluster.scratch import Scratch
from pfms.executors.base import Executor
from pfms.executors.environment import share_of_cores
from pfms.executors.fresh import FreshExecutor
from pfms.executors.warm import WarmExecutor
from pfms.plugin import PLUGIN
from pfms.plugin.command import host_facts, resolve_command, versions
from pfms.plugin.types import PluginExit, PluginRun, Progress
from pfms.storage.inside import open_file
from pfms.storage.removal import discard

_LOG_SECONDS = 0.2  # between two looks at what a run has printed
_WAITING = 32  # messages that wait to be fetched; then the run's result waits
_OF_THE_HOST = ("USER", "HOME", "MPLCONFIGDIR")  # what `Plugin.environment` makes of HostFacts


@dataclass(frozen=True)
class NodeConfig:
    """What an actor is told about the server.

    Attributes:
        plugin_command: As PFMS_PLUGIN_COMMAND; the node looks for its own.
        adaptations_off: As PFMS_ADAPTATIONS_OFF.
        runs_per_process: As PFMS_RUNS_PER_PROCESS.
        jobs_per_device: As PFMS_JOBS_PER_DEVICE.
        scratch: As PFMS_RAY_SCRATCH.
    """

    plugin_command: str
    adaptations_off: tuple[str, ...] = ()
    runs_per_process: int = 1
    jobs_per_device: int = 1
    scratch: str = ""


def look(plugin_command: str) -> dict[str, Any]:
    """The `versions` on a node, and `trouble` if it has no plugin; run there as a task."""
    try:
        resolve_command(plugin_command)
    except Exception as error:  # whatever it is, the node cannot be used
        return {"versions": {}, "trouble": str(error)}
    return {"versions": versions()}


class Node:
    """The actor. Its methods are called by `slots.py`, one run at a time."""

    def __init__(self, config: NodeConfig, device: str) -> None:
        self._config = config
        self._device = device  # as the plugin is told
        self._work: asyncio.Task[None] | None = None

    async def start(self) -> dict[str, Any]:
        """Get ready; returns `node_id`, Ray's, `host`, and `versions`."""
        config = self._config
        self._scratch = await asyncio.to_thread(Scratch, config.scratch)
        self._command = resolve_command(config.plugin_command)
        self._environment = PLUGIN.environment(
            host_facts(self._scratch.root / "home"),
            threads=share_of_cores(self._device, config.jobs_per_device),
            without=config.adaptations_off,
        )
        mark = f"ray-{self._scratch.root.name}"
        self._executor: Executor = FreshExecutor(mark)
        if self._command.kind != "foreign":
            self._executor = WarmExecutor(
                self._command,
                self._environment,
                mark,
                without=config.adaptations_off,
                runs_per_process=config.runs_per_process,
            )
        await self._executor.start()
        import ray

        return {
            "node_id": ray.get_runtime_context().get_node_id(),
            "host": socket.gethostname(),
            "versions": versions(),
        }

    async def run(
        self, order: Mapping[str, Any], volume: bytes | None, weights: bytes | None
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Run the plugin; yields what happens, in this order.

        ("progress", STAGE, DONE, TOTAL) and ("log", BYTES) while it runs; then the pieces of
        `parcels`; at last ("ended", FIELDS) with those of `PluginExit`, or ("cancelled",).
        """
        told: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue(_WAITING)
        self._work = asyncio.create_task(self._run(order, volume, weights, told))
        del volume, weights
        while True:
            message = await told.get()
            yield message
            if message[0] in ("ended", "cancelled"):
                return

    async def cancel(self) -> None:
        """End the run, with all its processes, before this returns."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work})

    async def _run(
        self,
        order: Mapping[str, Any],
        volume: bytes | None,
        weights: bytes | None,
        told: "asyncio.Queue[tuple[Any, ...]]",
    ) -> None:
        root = await asyncio.to_thread(self._scratch.job, order["job"])
        log = root / "plugin.log"
        last: tuple[Any, ...] = ("cancelled",)
        try:
            await in_thread(_lay_out, root, volume, weights)
            del volume, weights
            following = asyncio.create_task(_follow(log, order["max_log_bytes"] // 2, told))
            try:
                end = await self._executor.run(
                    self._call(order, root, log), lambda progress: _tell(told, progress)
                )
                last = ("ended", asdict(end))
            finally:
                following.cancel()
                await asyncio.wait({following})
                shown = 0 if following.cancelled() else following.result()
                await told.put(("log", await in_thread(_rest_of, log, shown)))
            pieces = packed(root, ("input", "home", log.name, *PLUGIN.copies))
            while (piece := await in_thread(next, pieces, None)) is not None:
                await told.put(piece)
        except asyncio.CancelledError:
            last = ("cancelled",)
        except Exception as error:  # of the node, such as a full disk: another one may be well
            why = f"{socket.gethostname()}: {error}"
            last = ("ended", asdict(PluginExit(None, None, 0, "executor", why)))
        finally:
            await in_thread(discard, root)
            await told.put(last)

    def _call(self, order: Mapping[str, Any], root: Path, log: Path) -> PluginRun:
        given: dict[str, str] = order["environment"]
        # Its home, its user and its share of the cores are those of this machine.
        environment = {name: text for name, text in given.items() if name not in _OF_THE_HOST}
        return PluginRun(
            job=order["job"],
            root=root,
            argv=(*self._command.argv, *order["arguments"]),
            environment={**environment, **self._environment},
            log=log,
            time_limit=order["time_limit"],
            grace=order["grace"],
            max_log_bytes=order["max_log_bytes"],
            max_memory=order["max_memory"],
            slot="0",  # an actor is one
            kind=order["kind"],
        )


def _lay_out(root: Path, volume: bytes | None, weights: bytes | None) -> None:
    for name, content in ((PLUGIN.volume, volume), (PLUGIN.weights, weights)):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            file.write_bytes(content)
    (root / "output").mkdir()


def _tell(told: "asyncio.Queue[tuple[Any, ...]]", progress: Progress) -> None:
    with contextlib.suppress(asyncio.QueueFull):  # a later one tells more
        told.put_nowait(("progress", progress.stage, progress.done, progress.total))


async def _follow(log: Path, most: int, told: "asyncio.Queue[tuple[Any, ...]]") -> int:
    """Tell what is printed, as far as the head of the log, which stays as it is; until cancelled.

    Returns how many bytes were told.
    """
    shown = 0
    with contextlib.suppress(asyncio.CancelledError):
        while shown < most:
            await asyncio.sleep(_LOG_SECONDS)
            if data := await in_thread(_read, log, shown, most - shown):
                await told.put(("log", data))
                shown += len(data)
        await asyncio.Event().wait()
    return shown


def _read(log: Path, begin: int, most: int) -> bytes:
    try:
        with open_file(log.parent, log.name) as file:
            file.seek(begin)
            return file.read(most)
    except FileNotFoundError:
        return b""


def _rest_of(log: Path, begin: int) -> bytes:
    return _read(log, begin, -1)
