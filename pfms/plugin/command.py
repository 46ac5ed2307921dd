"""The plugin on this machine: where its command is, which Python runs it, which versions there are.

All of it cheap: files and metadata are read, nothing of the plugin is imported or started.
"""

import importlib.metadata
import importlib.util
import os
import platform
import pwd
import re
import shutil
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pfms.errors import StartError
from pfms.plugin.types import HostFacts

PACKAGE = "spleenseg"
_COMPARED = ("pfms", PACKAGE, "torch", "monai", "numpy", "nibabel")
_REMEDY = "Set PFMS_PLUGIN_COMMAND to a command, or to the path of an executable or a .py."
_INSTALL = "Install the plugin: `make install` in a clone of pfms does it."

Kind = Literal["entry-point", "script", "foreign"]


@dataclass(frozen=True)
class PluginCommand:
    """How the plugin is called.

    Attributes:
        argv: What a command line begins with, absolute.
        interpreter: The Python that runs it; our own where its executable does not tell.
        kind: `entry-point` (a console script of our own Python), `script` (a `.py`, run by our own
            Python), `foreign` (anything else).
        entry_point: `module:function` of an `entry-point`, else None.
    """

    argv: tuple[str, ...]
    interpreter: str
    kind: Kind
    entry_point: str | None = None


def resolve_command(setting: str) -> PluginCommand:
    """Find what `PFMS_PLUGIN_COMMAND` names.

    A bare command is looked for beside our own Python first (its environment need not be active),
    then on PATH.

    Raises:
        StartError: It is not there, cannot be executed, or its package is not installed.
    """
    if setting.endswith(".py"):
        script = _absolute(setting)
        if not script.is_file():
            raise StartError(f"There is no plugin script '{setting}'.", _REMEDY)
        if not os.access(script, os.R_OK):
            raise StartError(f"The plugin script '{setting}' cannot be read.", _REMEDY)
        return PluginCommand((sys.executable, str(script)), sys.executable, "script")

    executable = _executable(setting)
    interpreter = _interpreter_of(executable)
    if interpreter is None:
        return PluginCommand((str(executable),), sys.executable, "foreign")
    if not _is_our_own(interpreter):
        return PluginCommand((str(executable),), interpreter, "foreign")
    entry_point = _entry_point(executable.name)
    module = PACKAGE if entry_point is None else entry_point.module
    if (entry_point or executable.name == PACKAGE) and not _importable(module):
        raise StartError(
            f"The command '{setting}' is there, but not its Python package '{module}'.", _INSTALL
        )
    if entry_point is None:
        return PluginCommand((str(executable),), interpreter, "foreign")
    return PluginCommand((str(executable),), interpreter, "entry-point", entry_point.value)


def _absolute(setting: str) -> Path:
    return Path(setting).expanduser().absolute()  # not resolved: a venv's Python is a link


def _executable(setting: str) -> Path:
    if os.sep in setting:
        path = _absolute(setting)
        if not path.is_file():
            raise StartError(f"There is no plugin executable '{setting}'.", _REMEDY)
        if not os.access(path, os.X_OK):
            raise StartError(f"'{setting}' cannot be executed.", f"Run `chmod +x`, or: {_REMEDY}")
        return path
    beside_us = str(Path(sys.executable).parent)
    found = shutil.which(setting, path=beside_us) or shutil.which(setting)
    if found is None:
        raise StartError(
            f"The plugin's command '{setting}' is not there, neither beside {sys.executable} "
            "nor on PATH.",
            f"{_INSTALL} Or: {_REMEDY}",
        )
    return _absolute(found)


def _interpreter_of(executable: Path) -> str | None:
    """The Python of a script's first line, absolute; None where it is none."""
    try:
        with executable.open("rb") as file:
            start = file.read(1024).decode(errors="replace")
    except OSError:
        return None
    if not start.startswith("#!"):
        return None
    words = start[2:].split("\n", 1)[0].split()
    if words and Path(words[0]).name == "sh":
        # pip's form for a path too long for a first line: a shell that starts the Python
        match = re.search(r"^'''exec' (\"[^\"]+\"|\S+) ", start, re.MULTILINE)
        words = [match[1].strip('"')] if match else []
    if words and Path(words[0]).name == "env":
        words = [shutil.which(word) or "" for word in words[1:] if not word.startswith("-")]
    if words and re.fullmatch(r"python[\d.]*", Path(words[0]).name):
        return str(_absolute(words[0]))
    return None


def _is_our_own(interpreter: str) -> bool:
    # by folder: python, python3, python3.11 of one environment; two environments may share a file
    own, its = Path(sys.executable).parent, Path(interpreter).parent
    return its.is_dir() and own.samefile(its)  # one of them may go by a link


def _entry_point(name: str) -> importlib.metadata.EntryPoint | None:
    return next(iter(importlib.metadata.entry_points(group="console_scripts", name=name)), None)


def _importable(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def plugin_version(command: PluginCommand) -> str | None:
    """The version of the package that the command belongs to, where it is of our own Python."""
    if command.kind != "entry-point":
        return None
    entry_point = _entry_point(Path(command.argv[0]).name)
    return entry_point.dist.version if entry_point and entry_point.dist else None


def versions() -> dict[str, str]:
    """What decides about a run's voxels, for comparing a replay; packages that are there."""
    # An installation changes the time of its folder. Reading it all anew takes 5 ms a run.
    return dict(_versions_at(tuple(_changed_at(folder) for folder in sys.path)))


@lru_cache(maxsize=1)
def _versions_at(_: tuple[int, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _COMPARED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "machine": platform.machine(), "cpu": _cpu_model()}


def _changed_at(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() in ("model name", "Model"):
                    return value.strip()
    except OSError:
        pass
    return platform.processor()


def host_facts(spare_home: Path) -> HostFacts:
    """What this machine lacks that the plugin's libraries ask for.

    Args:
        spare_home: A folder to serve as HOME where HOME cannot be written: made in that case.
    """
    try:
        pwd.getpwuid(os.getuid())
        has_user = True
    except KeyError:
        has_user = False
    home = Path("~").expanduser() if has_user or "HOME" in os.environ else Path("/")
    if home.is_dir() and os.access(home, os.W_OK):
        return HostFacts(has_user=has_user)
    spare_home.mkdir(parents=True, exist_ok=True)
    return HostFacts(has_user=has_user, spare_home=str(spare_home.absolute()))
