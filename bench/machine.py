"""The machine that the figures come from."""

import os
import platform
from datetime import UTC, datetime
from typing import Any

import psutil

from pfms.plugin.command import versions


def machine() -> dict[str, Any]:
    """What the figures depend on, and when they were measured. Memory in bytes."""
    known = versions()
    return {
        "cpu": known.pop("cpu"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "versions": known,
        "load": list(
            os.getloadavg()
        ),  # of other processes too: if it was high, the figures are noisy
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine_line(facts: dict[str, Any]) -> str:
    """The same, in one line."""
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory'] / 2**30:.0f} GiB, "
        f"{facts['system']}, torch {facts['versions'].get('torch', '-')}, {facts['date'][:10]}"
    )
