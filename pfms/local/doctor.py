"""Checks whether this machine can serve, more closely than a start does; with remedies."""

import fcntl
import os
import platform
import pwd
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from pfms.errors import StartError
from pfms.executors.memory import memory_of_runs
from pfms.local.doctor_plugin import Check, check_devices, check_plugin, check_weights_child
from pfms.plugin import PLUGIN
from pfms.plugin.command import host_facts, resolve_command
from pfms.plugin.types import HostFacts
from pfms.settings import Settings
from pfms.storage.disk import network_storage
from pfms.volumes.memory import RunMemory

__all__ = ["Check", "examine"]

Look = Callable[[], Check]

GIB = 2**30
SHM_WANTED = GIB
SHM_TOO_SMALL = 64 << 20  # a container's default, which is not enough
SOCKET_PATH = 107  # bytes, Linux
SOCKET_NAME = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # what multiprocessing adds


def examine(settings: Settings) -> list[Check]:
    """Check everything; takes as long as the plugin takes to start. Changes nothing."""
    with TemporaryDirectory(prefix="pfms-doctor-") as scratch, ThreadPoolExecutor() as threads:
        host = host_facts(Path(scratch) / "home")
        looks = [
            check_python,
            lambda: check_user(host),
            *_of_the_plugin(settings, PLUGIN.environment(host)),
            lambda: check_memory(memory_of_runs(settings, settings.executor)),
            check_shared_memory,
            check_temporary_folder,
            lambda: check_workspace(settings.workspace.absolute()),
            lambda: check_disk(settings.workspace.absolute(), settings.min_free_bytes),
            lambda: check_port(settings.host, settings.port),
        ]
        return list(threads.map(lambda look: look(), looks))  # three of them wait for a process


def _of_the_plugin(settings: Settings, environment: Mapping[str, str]) -> list[Look]:
    try:
        command = resolve_command(settings.plugin_command)
    except StartError as error:
        missing = Check("plugin", "fail", error.detail, error.remedy)
        return [lambda: missing]
    return [
        lambda: check_plugin(command, environment),
        lambda: check_weights_child(command),
        lambda: check_devices(settings.devices, command, environment),
    ]


# --- this Python, this user ----------------------------------------------------------------


def check_python() -> Check:
    """3.11 or 3.12: numpy before 2, which the plugin needs, has wheels for no later one."""
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check("python", "ok", f"Python {version}")
    return Check("python", "fail", f"Python {version}", "Use Python 3.11 or 3.12.")


def check_user(host: HostFacts) -> Check:
    """A name and a home, which the plugin's libraries ask for."""
    odd = []
    if not host.has_user:
        odd.append(f"user ID {os.getuid()} has no passwd entry, so runs get USER=pfms")
    if host.spare_home is not None:
        odd.append("HOME cannot be written, so runs get one in the workspace")
    if odd:
        remedy = "Runs work like this; spleenseg by hand needs the same (see command.sh)."
        return Check("user", "warn", "; ".join(odd), remedy)
    return Check("user", "ok", f"{pwd.getpwuid(os.getuid()).pw_name}, home {Path.home()}")


# --- memory, disk, port --------------------------------------------------------------------


def check_memory(memory: RunMemory) -> Check:
    """What runs may use, by the settings or the machine, against what a clinical CT needs."""
    wanted = memory.needed((512, 512, 100), (0.8, 0.8, 3.0), "int16", scaled=False)
    needs = f"a CT of 512 x 512 x 100 voxels needs {_size(wanted)}"
    if not memory.alone:
        return Check("memory", "ok", f"runs have no limit; {needs}")
    detail = f"a run may use {_size(memory.alone)}; {needs}"
    if memory.alone < wanted:
        remedy = f"Give the machine or the container more, or raise {memory.setting}."
        return Check("memory", "warn", f"{detail}: it will be refused", remedy)
    return Check("memory", "ok", detail)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:  # noqa: S108
    """The plugin's DataLoader workers pass volumes through it."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return Check("shared memory", "warn", f"there is no {folder}", "Mount a tmpfs there.")
    return judge_shared_memory(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)


def judge_shared_memory(total: int, free: int) -> Check:
    """Judge how much of it there is, in bytes."""
    detail = f"{_size(free)} of {_size(total)} are free"
    remedy = "Give the container more: docker run --shm-size=2g (or --ipc=host)."
    if free < total / 2:
        remedy = f"Remove what fills it. {remedy}"
    if free <= SHM_TOO_SMALL:
        return Check("shared memory", "fail", f"{detail}: runs will end in a bus error", remedy)
    if free < SHM_WANTED:
        return Check("shared memory", "warn", f"{detail}: large volumes need more", remedy)
    return Check("shared memory", "ok", detail)


def check_temporary_folder(folder: Path | None = None) -> Check:
    """The plugin's DataLoader workers put sockets in it; if they cannot, a run hangs."""
    folder = folder or Path(gettempdir())
    if folder == Path.cwd():  # what Python takes when it finds no other
        detail = "neither TMPDIR nor /tmp can be written"
    elif len(bytes(folder)) + SOCKET_NAME > SOCKET_PATH:
        detail = f"the path {folder} is too long for sockets in it"
    else:
        return Check("temporary folder", "ok", str(folder))
    remedy = "Mount a tmpfs at /tmp, or set TMPDIR to a folder with a short path."
    return Check("temporary folder", "warn", f"{detail}: fresh runs will hang", remedy)


def check_workspace(root: Path) -> Check:
    """Whether this user may write there, and whether a server already does."""
    there = _nearest(root)
    if not os.access(there, os.W_OK | os.X_OK):
        remedy = "Set PFMS_WORKSPACE to a folder that this user may write to."
        return Check("workspace", "fail", f"{there} is not writable", remedy)
    holder = _holder(root / "pfms.lock")
    detail = f"{root} is writable" if there == root else f"{root} will be made"
    if holder:
        detail = f"{root} is in use by pfms, process {holder}"
    if storage := network_storage(root):
        remedy = "A local disk is faster, and keeps the jobs table safer."
        return Check("workspace", "warn", f"{detail}; it is on network storage ({storage})", remedy)
    return Check("workspace", "ok", detail)


def _holder(lock: Path) -> str | None:
    """The process that serves a workspace."""
    try:
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(64).strip() or "of another host"
    except OSError:
        pass
    return None


def check_disk(root: Path, wanted: int) -> Check:
    """Below PFMS_MIN_FREE_BYTES, uploads are refused."""
    free = shutil.disk_usage(_nearest(root)).free
    detail = f"{_size(free)} are free, PFMS_MIN_FREE_BYTES is {_size(wanted)}"
    if free < wanted:
        remedy = "Uploads are refused: make room, or set PFMS_MIN_FREE_BYTES lower."
        return Check("disk", "fail", detail, remedy)
    return Check("disk", "ok", detail)


def check_port(host: str, port: int) -> Check:
    """Whether a server could listen there."""
    from pfms.server import listen

    if port == 0:
        return Check("port", "ok", "a free one will be picked")
    try:
        listen(host, port).close()
    except StartError as error:
        if version := _pfms_at(host, port):
            detail = f"pfms {version} already listens on {host} port {port}"
            return Check("port", "warn", detail, "A second server needs another port: PFMS_PORT.")
        return Check("port", "fail", error.detail, error.remedy)
    return Check("port", "ok", f"{host} port {port} is free")


def _pfms_at(host: str, port: int) -> str | None:
    """The version of the pfms that answers there."""
    import httpx

    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    name = f"[{reached}]" if ":" in reached else reached
    try:
        answer = httpx.get(f"http://{name}:{port}/api/v1/about/", timeout=5, trust_env=False)
        body = answer.json()
        return str(body["version"]) if body["name"] == "pfms" else None
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    # not Path.exists, which raises if this user may not look there
    return next(each for each in (path, *path.parents) if os.path.exists(each))  # noqa: PTH110


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
