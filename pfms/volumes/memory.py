"""How much memory a run of a volume will need, and whether it may have as much. Pure."""

from dataclasses import dataclass

from pfms.errors import NoMemory
from pfms.plugin import PLUGIN


@dataclass(frozen=True)
class RunMemory:
    """What runs may use.

    Attributes:
        together: Bytes for all runs at a time; 0 sets no limit.
        alone: Bytes for one run, whatever else ends; 0 sets no limit.
        setting: The setting that would change `alone`.
        adapted: Whether runs have every adaptation, some of which save memory.
    """

    together: int = 0
    alone: int = 0
    setting: str = ""
    adapted: bool = True

    def needed(
        self,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        dtype: str,
        scaled: bool | None,
    ) -> int:
        """Estimate how many bytes a run will need (`Plugin.memory_needed`).

        Args:
            shape: Voxels along the stored axes (x, y, z).
            spacing: Millimetres along them.
            dtype: The stored type, such as `int16`.
            scaled: Whether a voxel differs from its stored value; None if that is not known.
        """
        return PLUGIN.memory_needed(
            shape, spacing, dtype, scaled=scaled is not False, adapted=self.adapted
        )

    def check(self, needed: int) -> None:
        """Check that a run that needs so many bytes can have them at all.

        Raises:
            NoMemory: It cannot.
        """
        if self.alone and needed > self.alone:
            need, may = gibibytes(needed), gibibytes(self.alone)
            raise NoMemory(
                f"Its run is estimated to need {need} of memory; this server has {may} for it.",
                f"Crop the volume to the abdomen, or resample it to thicker slices, so that it "
                f"needs {may} instead of {need}; or ask the operator of this server to raise "
                f"{self.setting}, if the machine has more.",
            )


NO_LIMIT = RunMemory()
"""Runs may use whatever they need."""


def gibibytes(size: int) -> str:
    """A size for people."""
    return f"{size / 2**30:.2f} GiB"
