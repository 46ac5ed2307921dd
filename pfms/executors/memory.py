"""The memory that runs may use: the machine's, or less where a control group has a limit."""

from pathlib import Path

import psutil

from pfms.settings import Settings
from pfms.volumes.memory import RunMemory

_CGROUPS = Path("/sys/fs/cgroup")
_KEPT = 512 << 20  # bytes for the server, the checks of volumes and weights, and the system


def memory_of_runs(settings: Settings, executor: str) -> RunMemory:
    """What runs by an executor of this name may use, by the settings or else the machine."""
    if settings.memory_limit == "auto":
        # The nodes of a cluster have their own, and Ray sees that a run gets what it needs.
        together, alone = (0, 0) if executor == "ray" else for_runs()
    else:
        together = alone = int(settings.memory_limit)
    setting, of_each = "PFMS_MEMORY_LIMIT", int(settings.max_run_memory)
    if of_each and (not alone or of_each < alone):
        alone, setting = of_each, "PFMS_MAX_RUN_MEMORY"
    adapted = executor != "fresh" and not settings.adaptations_off
    return RunMemory(together, alone, setting, adapted)


def for_runs(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> tuple[int, int]:
    """How many bytes of memory runs may use together, and how many a run that is alone.

    The second also counts the machine's swap, but not where a control group has the limit.

    Args:
        cgroups: Where the control groups are mounted, of version 1 or 2.
        own: The file that names those of this process.
    """
    machine = psutil.virtual_memory().total
    together = min([machine, *_limits(cgroups, own)])
    swap = psutil.swap_memory().total if together == machine else 0
    return together - _KEPT, together - _KEPT + swap


def _limits(cgroups: Path, own: Path) -> list[int]:
    """The limits of the control groups that this process is in, those above them included.

    Version 2 has the path of the group after `::` and writes `max` for none; version 1 has it after
    `:memory:` and writes a number that no machine has. In a container the mounted tree may begin at
    its own group: then only the last of the folders looked at is there.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                found.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # no such file, or no limit
                continue
    return found
