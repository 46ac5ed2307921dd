"""The plugin spleenseg: its command line, the files that it reads and writes, what it prints.

Nothing here uses files or processes, so each rule is tested from a table.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np

from pfms.errors import UnsupportedNifti
from pfms.plugin.adaptations import adaptations
from pfms.plugin.command_script import render
from pfms.plugin.grid import resampled_shape
from pfms.plugin.memory import memory_needed
from pfms.plugin.types import ORDINARY_HOST, Floats, HostFacts, PluginExit, Resultant, Stage
from pfms.plugin.verdict import Verdict, cause_of, last_traceback

# Relative to the job's folder. Below its input folder, the plugin takes every `imagesTs/**/*nii.gz`
# and the first file with the model's name, so each job has a tree with exactly one of each.
_INPUTDIR = "input"
_OUTPUTDIR = "output"
_MODEL_NAME = "model.pth"
_VOLUME = f"{_INPUTDIR}/imagesTs/input.nii.gz"
_WEIGHTS = f"{_INPUTDIR}/{_MODEL_NAME}"
_ONEHOT = f"{_OUTPUTDIR}/inference/input/input_seg.nii.gz"
_LOGITS = f"{_OUTPUTDIR}/inference/output.nii.gz"

_NETWORK_SPACING = (1.5, 1.5, 2.0)  # mm along R, A and S
# Its picture shows slice 20 of the last axis; the plugin fails on volumes without one.
_SLICES_FOR_PICTURE = 21
_NO_PICTURE = (
    f"The volume has fewer than {_SLICES_FOR_PICTURE} slices: the plugin made the segmentation, "
    "then failed to draw its picture of slice 20 (infer-1.png)."
)


class Spleenseg:
    """pl-monai_spleenseg, as `interface.Plugin`."""

    name: ClassVar[str] = "spleenseg"
    network: ClassVar[str] = "spleenseg.models.data:ModelParams.model"
    volume: ClassVar[str] = _VOLUME
    weights: ClassVar[str] = _WEIGHTS
    outputs: ClassVar[Mapping[Resultant, str]] = {"onehot": _ONEHOT, "logits": _LOGITS}
    copies: ClassVar[tuple[str, ...]] = (f"{_OUTPUTDIR}/inference/orig.nii.gz",)

    def argv(
        self, command: Sequence[str], device: str, resultant: Resultant = "labels"
    ) -> tuple[str, ...]:
        """The whole command line of a run."""
        options = ("--mode", "inference", "--device", device, "--useModel", _MODEL_NAME)
        more = ("--logTransformVols",) if resultant == "logits" else ()
        return (*command, *options, *more, _INPUTDIR, _OUTPUTDIR)

    def environment(
        self,
        host: HostFacts = ORDINARY_HOST,
        *,
        threads: int | None = None,
        without: Collection[str] = (),
    ) -> dict[str, str]:
        """What a run sets on top of the server's own environment."""
        chosen = {
            "MPLBACKEND": "Agg",  # there is no display
            "PYTHONUNBUFFERED": "1",  # so that the log can be followed
            "PYTHONIOENCODING": "utf-8",  # in a Latin-1 locale, its banner would kill it
        }
        if not host.has_user:
            chosen["USER"] = "pfms"
        if host.spare_home is not None:
            chosen |= {"HOME": host.spare_home, "MPLCONFIGDIR": f"{host.spare_home}/matplotlib"}
        if threads is not None:
            chosen |= dict.fromkeys(
                ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
            )
        for step in adaptations(without):
            chosen |= step.environment
        return chosen

    def command_script(self, argv: Sequence[str], environment: Mapping[str, str]) -> str:
        """The text of `command.sh`."""
        start = list(argv).index("--mode")
        return render(
            command=argv[:start],
            arguments=argv[start:-1],
            environment={k: v for k, v in environment.items() if not k.startswith("PFMS_")},
            files=(_VOLUME, _WEIGHTS),
            result=_ONEHOT.removeprefix(f"{_OUTPUTDIR}/"),
        )

    def check_can_make(self, resultant: Resultant, shape: tuple[int, int, int]) -> None:
        """Refuse logits for a volume on which the plugin fails before it writes them."""
        if resultant == "logits" and shape[2] < _SLICES_FOR_PICTURE:
            raise UnsupportedNifti(
                f"The volume has {shape[2]} slices: with fewer than {_SLICES_FOR_PICTURE} the "
                "plugin fails before it writes the logits.",
                "Ask for the resultant 'labels' or 'onehot', or send a volume with more slices.",
            )

    def uses_sform(self, pixdim: Floats, spacing: Floats) -> bool:
        """Whether its reader uses the sform.

        MONAI's loader ignores an sform whose spacing differs from pixdim, and uses the qform
        instead, whatever its code (monai.data.utils.rectify_header_sform_qform, MONAI 1.6.1).
        """
        return bool(np.allclose(pixdim, spacing))

    def network_grid(self, shape: tuple[int, int, int], affine: Floats) -> tuple[int, int, int]:
        """The grid on which its network sees a volume."""
        return resampled_shape(shape, affine, _NETWORK_SPACING)

    def memory_needed(
        self,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        dtype: str,
        *,
        scaled: bool,
        adapted: bool,
    ) -> int:
        """Estimate the most bytes of memory that a run will hold."""
        # How the volume lies hardly changes the grid's number of voxels.
        grid = self.network_grid(shape, np.diag([*spacing, 1.0]))
        return memory_needed(shape, grid, dtype, scaled=scaled, adapted=adapted)

    def stage_of(self, log_text: str) -> Stage:
        """The stage that a run has reached, from the lines that it has printed."""
        if f"writing: {_ONEHOT}" in log_text:
            return "writing"
        if "--------> novel inference" in log_text:  # the network has done its work
            return "resampling"
        return "inferring" if "Loading dataset: 100%" in log_text else "loading"

    def cause_of(
        self,
        exit: PluginExit,
        log_tail: str,
        onehot_written: bool,
        *,
        root: str = "",
        disk_full: bool = False,
    ) -> Verdict:
        """Why a run ended as it did; it is not a failure if only the picture could not be drawn."""
        if onehot_written and exit.code == 1 and _failed_at_its_picture(log_tail):
            return Verdict(None, warning=_NO_PICTURE)
        return cause_of(exit, log_tail, onehot_written, root=root, disk_full=disk_full)


def _failed_at_its_picture(log_tail: str) -> bool:
    trace = last_traceback(log_tail)
    return "in plot_infer" in trace and "IndexError: index 20 is out of bounds" in trace
