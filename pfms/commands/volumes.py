"""The volumes that a command is to segment, and the files that their results go to."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pfms.local.dicom_series import Series

ENDINGS = (".nii", ".nii.gz")
_NAMES = {"labels": "spleen", "onehot": "onehot", "logits": "logits"}
_DICOM_AT, _DICOM = 128, b"DICM"  # how every DICOM file begins


@dataclass(frozen=True)
class Task:
    """A volume, and the file that its result goes to.

    Attributes:
        volume: A file; of a DICOM series the folder that has all its files.
        target: The file of its result.
        series: The series, if it is DICOM.
    """

    volume: Path
    target: Path
    series: "Series | None" = None

    @property
    def name(self) -> str:
        """What a table calls the volume."""
        return f"{self.volume}, {self.series.name}" if self.series else str(self.volume)

    @property
    def seg(self) -> Path:
        """Where its result goes as DICOM SEG."""
        return self.target.with_name(f"{_stem(self.target.name)}.dcm")

    def outputs(self, dicom_seg: bool) -> list[Path]:
        """The files of its result."""
        return [self.target, self.seg] if dicom_seg else [self.target]


def found(
    words: Sequence[str],
    out: Path,
    resultant: str,
    series: Sequence[str] = (),
    on_skip: Callable[[str], None] = lambda line: None,
) -> list[Task]:
    """Every volume that is meant by files, folders (with all below them) and patterns.

    A result has the name of its volume, and is as deep below `out` as its volume is below the
    folder that was named. Results of an earlier call are not taken for volumes. The DICOM files
    among all that is meant are sorted into series.

    Args:
        words: What is meant.
        out: The folder for the results.
        resultant: `labels`, `onehot` or `logits`.
        series: UIDs or descriptions of the DICOM series to take; none for all.
        on_skip: Called with a line for each DICOM file and series that is left out.

    Raises:
        ValueError: A word means no volume, or two volumes would have the same result.
        ModuleNotFoundError: There is DICOM, and the extra `dicom` is not installed.
    """
    tasks: dict[Path, Task] = {}  # by target
    dicom: dict[Path, Path] = {}  # each file, and the folder that is its place's start
    for word in words:
        volumes = list(_volumes(word))
        if not volumes:
            raise ValueError(f"{word} is no file, and no folder or pattern with volumes")
        for volume, start in volumes:
            if _is_dicom(volume):
                dicom.setdefault(volume, start)
                continue
            place = volume.parent.relative_to(start)
            task = Task(volume, out / place / result_name(volume, resultant))
            other = tasks.setdefault(task.target, task)
            if other.volume.resolve() != volume.resolve():
                raise ValueError(
                    f"the results of {other.volume} and {volume} would both be {task.target}"
                )
    if series and not dicom:
        raise ValueError("a series is chosen with --series, but there are no DICOM files")
    of_dicom = _of_dicom(dicom, out, resultant, series, on_skip) if dicom else []
    everything = _apart([*tasks.values(), *of_dicom])
    results = {path.resolve() for task in everything for path in _results_of(task)}
    return [task for task in everything if task.series or task.volume.resolve() not in results]


def result_name(volume: Path, resultant: str) -> str:
    """`CT-spleen.nii.gz` for `CT.nii`."""
    return f"{_stem(volume.name)}-{_NAMES[resultant]}.nii.gz"


def _results_of(task: Task) -> Iterator[Path]:
    """Files that this call or an earlier one may have made of a volume."""
    yield task.target
    for kind in _NAMES:
        if task.series is None:
            yield task.volume.with_name(result_name(task.volume, kind))
        else:
            yield task.target.with_name(
                f"{_stem(task.target.name).rpartition('-')[0]}-{kind}.nii.gz"
            )


def _stem(name: str) -> str:
    for suffix in (".gz", ".nii"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return name


def _volumes(word: str) -> Iterator[tuple[Path, Path]]:
    """Each volume or DICOM file, and the folder that its place is counted from."""
    path = Path(word)
    if path.is_dir():
        yield from ((each, path) for each in _below(path))
    elif path.exists():
        yield path, path.parent
    else:
        for text in sorted(glob.glob(word, recursive=True)):  # noqa: PTH207 (it may be absolute)
            one = Path(text)
            if one.is_dir():
                yield from ((each, one.parent) for each in _below(one))
            else:
                yield one, one.parent


def _below(folder: Path) -> list[Path]:
    """Volumes and DICOM files in a folder and the folders in it; nothing hidden."""
    return sorted(
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and (path.name.lower().endswith(ENDINGS) or _is_dicom(path))
    )


# --- DICOM ---------------------------------------------------------------------------------------


def _is_dicom(path: Path) -> bool:
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(_DICOM_AT + len(_DICOM))[_DICOM_AT:] == _DICOM
    return False


def _of_dicom(
    files: dict[Path, Path],
    out: Path,
    resultant: str,
    wanted: Sequence[str],
    on_skip: Callable[[str], None],
) -> list[Task]:
    """A task for each series.

    Its result is named after the folder that has all files of the series, and its number; after
    the file, if there is one only.
    """
    from pfms.local.dicom_series import ct_series

    tasks = []
    for series in ct_series(files, wanted, on_skip):
        mixed = len({file.is_absolute() for file in series.files}) > 1
        paths = [file.absolute() for file in series.files] if mixed else series.files
        volume, start = Path(os.path.commonpath(paths)), files[series.files[0]]
        inside = volume != start and volume.is_relative_to(start)
        place = volume.parent.relative_to(start) if inside else Path()
        name = volume.name if inside else volume.resolve().name
        if len(series.files) == 1:
            name = name.removesuffix(".dcm")
        name = f"{name}-{series.name.replace(' ', '')}"
        tasks.append(Task(volume, out / place / f"{name}-{_NAMES[resultant]}.nii.gz", series))
    return tasks


def _apart(tasks: Sequence[Task]) -> list[Task]:
    """Tasks with a target of their own each: a series whose target is another's gets a mark."""
    count = Counter(task.target for task in tasks)
    return [
        replace(task, target=task.target.with_name(f"{task.series.mark}-{task.target.name}"))
        if task.series and count[task.target] > 1
        else task
        for task in tasks
    ]
