"""The plugin, purely: its command line, its environment, `command.sh`, and what its end meant.

Nothing here touches a file or a process, so each rule is tested from a table.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pfms.errors import UnsupportedNifti
from pfms.plugin.adaptations import adaptations
from pfms.plugin.command_script import render as command_script_text
from pfms.plugin.verdict import cause_of as cause_of

NAME = "spleenseg"

# Relative to the job's folder. The plugin takes every `imagesTs/**/*nii.gz` and the first file of
# the model's name below its input folder, so each job has a tree with exactly one of both.
INPUTDIR = "input"
OUTPUTDIR = "output"
MODEL_NAME = "model.pth"
VOLUME = f"{INPUTDIR}/imagesTs/input.nii.gz"
MODEL = f"{INPUTDIR}/{MODEL_NAME}"
ONEHOT = f"{OUTPUTDIR}/inference/input/input_seg.nii.gz"
LOGITS = f"{OUTPUTDIR}/inference/output.nii.gz"

# Its picture shows slice 20 of the last axis; a volume that has none ends it there.
SLICES_FOR_PICTURE = 21

Stage = Literal["loading", "inferring", "saving"]
STAGES: tuple[Stage, ...] = ("loading", "inferring", "saving")


def inference_argv(command: Sequence[str], device: str, logits: bool = False) -> tuple[str, ...]:
    """The whole command line of a run, for the job's folder as working directory.

    Args:
        command: How the plugin is called (`PluginCommand.argv`).
        device: `cpu` or `cuda:N`.
        logits: Let it write `LOGITS` too.
    """
    options = ("--mode", "inference", "--device", device, "--useModel", MODEL_NAME)
    more = ("--logTransformVols",) if logits else ()
    return (*command, *options, *more, INPUTDIR, OUTPUTDIR)


def command_script(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """`command.sh`: a run's call, to be made again by hand, here or on another machine.

    Args:
        argv: Of `inference_argv`.
        environment: Of `environment`.
    """
    start = list(argv).index("--mode")
    return command_script_text(
        command=argv[:start],
        arguments=argv[start:-1],
        environment={k: v for k, v in environment.items() if not k.startswith("PFMS_")},
        files=(VOLUME, MODEL),
        result=ONEHOT.removeprefix(f"{OUTPUTDIR}/"),
    )


def no_logits(slices: int) -> UnsupportedNifti:
    """The refusal of `logits` for a volume of too few slices."""
    return UnsupportedNifti(
        f"The volume has {slices} slices: with fewer than {SLICES_FOR_PICTURE} the plugin stops "
        "before it writes the logits.",
        "Ask for the resultant 'labels' or 'onehot', or send a volume of more slices.",
    )


@dataclass(frozen=True)
class HostFacts:
    """What the plugin's libraries ask of the machine that it may not have.

    Attributes:
        has_user: The user ID has a passwd entry; without one `import monai` dies.
        spare_home: A folder to be HOME, where HOME itself cannot be written; else None.
    """

    has_user: bool = True
    spare_home: str | None = None


def environment(
    host: HostFacts = HostFacts(),
    *,
    threads: int | None = None,
    without: Collection[str] = (),
) -> dict[str, str]:
    """What a run sets on top of the server's own environment.

    Args:
        host: About this machine.
        threads: Threads for a run that shares the cores with others; None leaves them all to it.
        without: Names of `ADAPTATIONS` to leave out.

    Raises:
        ValueError: `without` names none of them.
    """
    chosen = {
        "MPLBACKEND": "Agg",  # no display
        "PYTHONUNBUFFERED": "1",  # the log can be followed
        "PYTHONIOENCODING": "utf-8",  # its banner kills it under a Latin-1 locale
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


def stage_of(log_text: str) -> Stage:
    """How far a run is, by the lines that the plugin prints."""
    if "--------> novel inference" in log_text:
        return "saving"
    return "inferring" if "Loading dataset: 100%" in log_text else "loading"
