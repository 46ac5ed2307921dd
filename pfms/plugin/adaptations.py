"""The steps that make the plugin faster without changing its voxels, by name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Adaptation:
    """A step that makes the plugin faster without changing its voxels.

    The measurements are in `docs/adaptations.md`.

    Attributes:
        name: For leaving it out (`PFMS_ADAPTATIONS_OFF`).
        why: What it does.
        environment: Variables that it sets, in `command.sh` too. Empty if it is a function of the
            warm parent, in `programs/warm_adaptations.py` or `programs/warm_volumes.py`.
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
        why="OpenMP's threads spin while they wait for each other, which wastes busy cores.",
        environment={"OMP_WAIT_POLICY": "passive"},
    ),
    Adaptation("preload", "The parent also imports the modules that a run would import later."),
    Adaptation("no-workers", "No four processes are started to load one image already in memory."),
    Adaptation("igzip", "Volumes are packed and unpacked by ISA-L, which is faster than zlib."),
    Adaptation("argmax-layout", "torch's argmax is slow when the classes are far apart in memory."),
    Adaptation("read-as-float32", "A volume is converted and brought into C order in one pass."),
    Adaptation("sample-by-rows", "No table of 7 doubles a voxel is made to sample another grid."),
    Adaptation("one-hot-in-one-pass", "The label map is made from the scores in the file's order."),
    Adaptation("save-beside-picture", "The label map is packed while the picture is drawn."),
)


def adaptations(without: Collection[str] = ()) -> list[Adaptation]:
    """The adaptations in use.

    Args:
        without: Names of `ADAPTATIONS` to leave out.

    Raises:
        ValueError: `without` has a name that is not an adaptation.
    """
    if unknown := set(without) - {step.name for step in ADAPTATIONS}:
        raise ValueError(f"no such adaptation: {', '.join(sorted(unknown))}")
    return [step for step in ADAPTATIONS if step.name not in without]
