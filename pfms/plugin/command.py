"""The plugin on this machine: where its command is, which Python runs it, which versions it has.

This is cheap: it reads files and metadata, but imports and starts nothing of the plugin.
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
from pfms.plugin.spleenseg import Spleenseg
from pfms.plugin.types import HostFacts

PACKAGE = Spleenseg.name
_COMPARED = ("pfms", PACKAGE, "torch", "monai", "numpy", "nibabel")
_REMEDY = "Set PFMS_PLUGIN_COMMAND to a command, or to the path of an executable or a .py."
_INSTALL = "Install the plugin: `make install` in a clone of pfms does it."

Kind = Literal["entry-point", "script", "foreign"]


@dataclass(frozen=True)
class PluginCommand:
    """How the plugin is called.

    Attributes:
        argv: The beginning of its command lines; absolute.
        interpreter: The Python that runs it; our own if its executable does not say.
        kind: `entry-point` (a console script of our own Python), `script` (a `.py`, run by our own
            Python), `foreign` (anything else).
        entry_point: `module:function` of an `entry-point`, else None.
    """

    argv: tuple[str, ...]
    interpreter: str
    kind: Kind
    entry_point: str | None = None

    @property
    def name(self) -> str:
        """The name of the executable, or of the script."""
        return Path(self.argv[-1]).name


def resolve_command(setting: str) -> PluginCommand:
    """Find what `PFMS_PLUGIN_COMMAND` names.

    A bare command is looked for beside our own Python first, whose environment need not be active,
    then on PATH.

    Raises:
        StartError: It was not found, cannot be executed, or its package is not installed.
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
            f"The command '{setting}' was found, but not its Python package '{module}'.", _INSTALL
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
            f"The plugin's command '{setting}' was found neither beside {sys.executable} "
            "nor on PATH.",
            f"{_INSTALL} Or: {_REMEDY}",
        )
    return _absolute(found)


def _interpreter_of(executable: Path) -> str | None:
    """The Python that a script's first line names, absolute; None if it does not name one."""
    try:
        with executable.open("rb") as file:
            start = file.read(1024).decode(errors="replace")
    except OSError:
        return None
    if not start.startswith("#!"):
        return None
    words = start[2:].split("\n", 1)[0].split()
    if words and Path(words[0]).name == "sh":
        # pip's form if the path is too long for a first line: a shell that starts the Python
        match = re.search(r"^'''exec' (\"[^\"]+\"|\S+) ", start, re.MULTILINE)
        words = [match[1].strip('"')] if match else []
    if words and Path(words[0]).name == "env":
        words = [shutil.which(word) or "" for word in words[1:] if not word.startswith("-")]
    if words and re.fullmatch(r"python[\d.]*", Path(words[0]).name):
        return str(_absolute(words[0]))
    return None


def _is_our_own(interpreter: str) -> bool:
    # Compare folders: an environment has python, python3 and python3.11, and two environments may
    # link to the same file.
    own, its = Path(sys.executable).parent, Path(interpreter).parent
    return its.is_dir() and own.samefile(its)  # one of the paths may contain a link


def _entry_point(name: str) -> importlib.metadata.EntryPoint | None:
    return next(iter(importlib.metadata.entry_points(group="console_scripts", name=name)), None)


def _importable(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def plugin_version(command: PluginCommand) -> str | None:
    """The version of the package that the command belongs to; None if not in our own Python."""
    if command.kind != "entry-point":
        return None
    entry_point = _entry_point(Path(command.argv[0]).name)
    return entry_point.dist.version if entry_point and entry_point.dist else None


def versions() -> dict[str, str]:
    """The versions of everything that affects a run's voxels, as far as it is installed."""
    # Cached, since reading them takes 5 ms per run; an installation changes its folder's time.
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
    """What the plugin's libraries need to be told about this machine.

    Args:
        spare_home: A folder to use as HOME if HOME is not writable; it is made in that case.
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
