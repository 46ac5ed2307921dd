"""What pfms asks of a plugin. Everything specific to one plugin is behind this interface."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Protocol

from pfms.plugin.types import ORDINARY_HOST, Floats, HostFacts, PluginExit, Resultant, Stage
from pfms.plugin.verdict import Verdict


class Plugin(Protocol):
    """A ChRIS plugin that segments one volume with one file of weights.

    Attributes:
        name: The name of its package and its command.
        network: Where its package has the network that weights must fit: `module:attribute`.
        volume: Where it finds the volume, relative to the job's folder.
        weights: Where it finds the weights, relative to the job's folder.
        outputs: The files that it writes, relative to the job's folder, for the resultants that
            pfms serves unchanged.
        copies: Copies of the volume that it makes, relative to the job's folder: a copy has all
            the texts of the volume's header, which may name a patient.
    """

    name: ClassVar[str]
    network: ClassVar[str]
    volume: ClassVar[str]
    weights: ClassVar[str]
    outputs: ClassVar[Mapping[Resultant, str]]
    copies: ClassVar[tuple[str, ...]]

    # --- how it is run -------------------------------------------------------------------------

    def argv(
        self, command: Sequence[str], device: str, resultant: Resultant = "labels"
    ) -> tuple[str, ...]:
        """The whole command line of a run, with the job's folder as working directory.

        Args:
            command: How the plugin is called (`PluginCommand.argv`).
            device: `cpu` or `cuda:N`.
            resultant: What the run has to produce.
        """

    def environment(
        self,
        host: HostFacts = ORDINARY_HOST,
        *,
        threads: int | None = None,
        without: Collection[str] = (),
    ) -> dict[str, str]:
        """What a run sets on top of the server's own environment.

        Args:
            host: What the plugin needs to be told about this machine.
            threads: Threads for a run that shares the cores; None if it may use all cores.
            without: Names of adaptations to leave out.

        Raises:
            ValueError: `without` names something that is not an adaptation.
        """

    def command_script(self, argv: Sequence[str], environment: Mapping[str, str]) -> str:
        """`command.sh`, which repeats a run's call, here or on another machine.

        Args:
            argv: As `argv` gave it.
            environment: As `environment` gave it.
        """

    # --- how it reads a volume -----------------------------------------------------------------

    def check_can_make(self, resultant: Resultant, shape: tuple[int, int, int]) -> None:
        """Refuse a resultant that it cannot make from a volume of this shape (x, y, z).

        Raises:
            UnsupportedNifti: It cannot make it.
        """

    def uses_sform(self, pixdim: Floats, spacing: Floats) -> bool:
        """Whether its reader uses a volume's sform, and not its qform.

        Args:
            pixdim: The spacing in the header, in mm.
            spacing: The spacing of the sform, in mm.
        """

    def network_grid(self, shape: tuple[int, int, int], affine: Floats) -> tuple[int, int, int]:
        """The grid (R, A, S) on which its network sees a volume, before any crop.

        Args:
            shape: Voxels along the stored axes (x, y, z).
            affine: 4 x 4, from voxel indices to millimetres in RAS.
        """

    def memory_needed(
        self,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        dtype: str,
        *,
        scaled: bool,
        adapted: bool,
    ) -> int:
        """Estimate the most bytes of memory that a run will hold (`PluginExit.peak_memory`).

        Args:
            shape: Voxels along the stored axes (x, y, z).
            spacing: Millimetres along them.
            dtype: The stored type, such as `int16`.
            scaled: Whether a voxel differs from its stored value.
            adapted: Whether the run has every adaptation.
        """

    # --- what it reports -----------------------------------------------------------------------

    def stage_of(self, log_text: str) -> Stage:
        """The stage that a run has reached, from what it has printed."""

    def cause_of(
        self,
        exit: PluginExit,
        log_tail: str,
        onehot_written: bool,
        *,
        root: str = "",
        disk_full: bool = False,
    ) -> Verdict:
        """Why a run ended as it did: `verdict.cause_of`, plus what is specific to this plugin."""
