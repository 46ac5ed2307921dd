"""What pfms asks of a plugin. All that it knows of one in particular stands behind this."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Protocol

from pfms.plugin.types import ORDINARY_HOST, Floats, HostFacts, PluginExit, Resultant, Stage
from pfms.plugin.verdict import Verdict


class Plugin(Protocol):
    """A ChRIS plugin that segments one volume with one file of weights.

    Attributes:
        name: Of its package and of its command.
        network: Where its package keeps the network that weights must fit: `module:attribute`.
        volume: Where it finds the volume, relative to the job's folder.
        weights: Where it finds the weights, likewise.
        outputs: The files that it writes, for the resultants that pfms serves untouched; relative
            to the job's folder.
    """

    name: ClassVar[str]
    network: ClassVar[str]
    volume: ClassVar[str]
    weights: ClassVar[str]
    outputs: ClassVar[Mapping[Resultant, str]]

    # --- how it is run -------------------------------------------------------------------------

    def argv(
        self, command: Sequence[str], device: str, resultant: Resultant = "labels"
    ) -> tuple[str, ...]:
        """The whole command line of a run, for the job's folder as working directory.

        Args:
            command: How the plugin is called (`PluginCommand.argv`).
            device: `cpu` or `cuda:N`.
            resultant: What has to come out.
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
            host: About this machine.
            threads: Threads for a run that shares the cores; None leaves all cores to it.
            without: Names of adaptations to leave out.

        Raises:
            ValueError: `without` names something that is not an adaptation.
        """

    def command_script(self, argv: Sequence[str], environment: Mapping[str, str]) -> str:
        """`command.sh`: a run's call, to be made again by hand, here or on another machine.

        Args:
            argv: Of `argv`.
            environment: Of `environment`.
        """

    # --- what it makes of a volume -------------------------------------------------------------

    def check_can_make(self, resultant: Resultant, shape: tuple[int, int, int]) -> None:
        """Refuse a resultant that it cannot make of a volume of this shape (x, y, z).

        Raises:
            UnsupportedNifti: It cannot.
        """

    def uses_sform(self, pixdim: Floats, spacing: Floats) -> bool:
        """Whether its reader places a volume by the sform, and not by the qform.

        Args:
            pixdim: The spacing that the header gives, mm.
            spacing: That of the sform, mm.
        """

    def network_grid(self, shape: tuple[int, int, int], affine: Floats) -> tuple[int, int, int]:
        """The grid (R, A, S) on which its network sees a volume, before any crop.

        Args:
            shape: Voxels along the stored axes (x, y, z).
            affine: 4 x 4, from voxel indices to millimetres in RAS.
        """

    # --- what it says --------------------------------------------------------------------------

    def stage_of(self, log_text: str) -> Stage:
        """How far a run is, by what it has printed."""

    def cause_of(
        self,
        exit: PluginExit,
        log_tail: str,
        onehot_written: bool,
        *,
        root: str = "",
        disk_full: bool = False,
    ) -> Verdict:
        """Why a run ended as it did: as `verdict.cause_of`, and what is this plugin's alone."""
