"""The volumes that a command is to segment, and the files that their results go to."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ENDINGS = (".nii", ".nii.gz")
_NAMES = {"labels": "spleen", "onehot": "onehot", "logits": "logits"}


@dataclass(frozen=True)
class Task:
    """A volume, and the file that its result goes to."""

    volume: Path
    target: Path


def found(words: Sequence[str], out: Path, resultant: str) -> list[Task]:
    """Every volume that is meant by files, folders (with all below them) and patterns.

    A result has the name of its volume, and is as deep below `out` as its volume is below the
    folder that was named. Results of an earlier call are not taken for volumes.

    Raises:
        ValueError: A word means no volume, or two volumes would have the same result.
    """
    tasks: dict[Path, Task] = {}  # by target
    for word in words:
        volumes = list(_volumes(word))
        if not volumes:
            raise ValueError(f"{word} is no file, and no folder or pattern with volumes")
        for volume, place in volumes:
            task = Task(volume, out / place / result_name(volume, resultant))
            other = tasks.setdefault(task.target, task)
            if other.volume.resolve() != volume.resolve():
                raise ValueError(
                    f"the results of {other.volume} and {volume} would both be {task.target}"
                )
    results = {
        path.with_name(result_name(path, each)).resolve()
        for path in (task.volume for task in tasks.values())
        for each in _NAMES
    } | {task.target.resolve() for task in tasks.values()}
    return [task for task in tasks.values() if task.volume.resolve() not in results]


def result_name(volume: Path, resultant: str) -> str:
    """`CT-spleen.nii.gz` for `CT.nii`."""
    stem = volume.name
    for suffix in (".gz", ".nii"):
        stem = stem[: -len(suffix)] if stem.lower().endswith(suffix) else stem
    return f"{stem}-{_NAMES[resultant]}.nii.gz"


def _volumes(word: str) -> Iterator[tuple[Path, Path]]:
    """Each volume, and where below the output folder its result goes."""
    path = Path(word)
    if path.is_dir():
        yield from ((each, each.parent.relative_to(path)) for each in _below(path))
    elif path.exists():
        yield path, Path()
    else:
        for text in sorted(glob.glob(word, recursive=True)):  # noqa: PTH207 (it may be absolute)
            one = Path(text)
            if one.is_dir():
                yield from ((each, each.parent.relative_to(one.parent)) for each in _below(one))
            else:
                yield one, Path()


def _below(folder: Path) -> list[Path]:
    """Volumes in a folder and the folders in it; nothing hidden."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(ENDINGS)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
