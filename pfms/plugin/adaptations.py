"""What makes the plugin faster and leaves its voxels as they are, each step by its name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Adaptation:
    """A step that makes the plugin faster and leaves its voxels as they are.

    What was measured is in `docs/adaptations.md`.

    Attributes:
        name: By which it can be left out (`PFMS_ADAPTATIONS_OFF`).
        why: What it does.
        environment: What it sets, in `command.sh` too; empty where it is a step of the warm
            parent, a function in `programs/warm_plugin.py`.
    """

    name: str
    why: str
    environment: Mapping[str, str] = field(default_factory=dict)


ADAPTATIONS: tuple[Adaptation, ...] = (
    Adaptation(
        name="keep-memory",
        why=(
            "glibc gives each freed activation back to the kernel and faults it in again: 3.3 "
            "million page faults a run. Told to keep its memory, it takes a third of the time on "
            "a CPU and 0.4 GB more at the peak."
        ),
        environment={
            "MALLOC_TRIM_THRESHOLD_": "-1",
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TOP_PAD_": str(256 * 1024 * 1024),
        },
    ),
    Adaptation(
        name="sleep-at-barriers",
        why="OpenMP's threads spin while they wait for each other: for nothing, on busy cores.",
        environment={"OMP_WAIT_POLICY": "passive"},
    ),
    Adaptation("preload", "Modules that a run imports when the plugin itself is imported already."),
    Adaptation("no-workers", "Four processes to load the one image that is in memory already."),
    Adaptation("igzip", "Volumes are packed and unpacked by ISA-L, which is quicker than zlib."),
    Adaptation("argmax-layout", "torch's argmax is slow where the classes lie apart in memory."),
)


def adaptations(without: Collection[str] = ()) -> list[Adaptation]:
    """Those in use.

    Args:
        without: Names of `ADAPTATIONS` to leave out.

    Raises:
        ValueError: `without` names none of them.
    """
    if unknown := set(without) - {step.name for step in ADAPTATIONS}:
        raise ValueError(f"no such adaptation: {', '.join(sorted(unknown))}")
    return [step for step in ADAPTATIONS if step.name not in without]
