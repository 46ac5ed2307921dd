"""How alike two segmentations are. Needs the extra `compare`."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

_SAME_GRID = 1e-3  # mm: how far the affines of one grid may be apart
_ENDINGS = (".gz", ".nii")
_OF_RESULTS = "-spleen"  # which `pfms infer` puts after the name of a volume


class CannotCompare(Exception):
    """Two files cannot be compared.

    Attributes:
        detail: Why, in one sentence.
        remedy: What to do about it, in one sentence.
    """

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


@dataclass(frozen=True)
class Comparison:
    """Two masks on one grid.

    Attributes:
        name: What they are masks of.
        dice: 0 to 1; 1 if both are empty.
        first_ml: Volume of the first, millilitres.
        second_ml: Volume of the second.
        mean_mm: Mean distance from each surface to the other; None if a mask is empty.
        p95_mm: Distance within which 95 % of both surfaces are.
        max_mm: The largest (Hausdorff).
    """

    name: str
    dice: float
    first_ml: float
    second_ml: float
    mean_mm: float | None
    p95_mm: float | None
    max_mm: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON and CSV."""
        return asdict(self)


COLUMNS = tuple(field.name for field in fields(Comparison))


def compare(name: str, first: nib.Nifti1Image, second: nib.Nifti1Image) -> Comparison:
    """Compare two label maps; every voxel but 0 counts.

    Raises:
        CannotCompare: They are not on one grid, or not 3-D.
    """
    for image in (first, second):
        if len(image.shape) != 3:
            raise CannotCompare(
                f"{name}: a label map has 3 axes, this has {len(image.shape)}",
                "Compare label maps, as `pfms infer` writes them by default.",
            )
    if not on_one_grid(first, second):
        raise CannotCompare(
            f"{name}: the two are on different grids", "Resample one of them to the other's grid."
        )
    a, b = mask_of(first), mask_of(second)
    voxel_ml = abs(np.linalg.det(first.affine[:3, :3])) / 1000
    sums = int(a.sum()), int(b.sum())
    dice = 2 * int((a & b).sum()) / sum(sums) if any(sums) else 1.0
    mean = p95 = largest = None
    if all(sums):
        mm = surface_distances(a, b, nib.affines.voxel_sizes(first.affine))
        mean, p95, largest = float(mm.mean()), float(np.percentile(mm, 95)), float(mm.max())
    return Comparison(name, dice, sums[0] * voxel_ml, sums[1] * voxel_ml, mean, p95, largest)


def on_one_grid(first: nib.Nifti1Image, second: nib.Nifti1Image) -> bool:
    """Whether a voxel of the one is where that of the other is."""
    return first.shape == second.shape and np.allclose(first.affine, second.affine, 0, _SAME_GRID)


def surface_distances(a: Mask, b: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """From each voxel of the one surface to the nearest of the other, both ways, in mm.

    Args:
        a: Not empty; a voxel with a neighbour outside, across a face, is of the surface.
        b: Likewise, of the same shape.
        spacing: mm between voxel centres, along axes at right angles.
    """
    box = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box_of(a | b))
    first, second = (
        mask & ~ndimage.binary_erosion(mask) for mask in (np.pad(each[box], 1) for each in (a, b))
    )
    there = ndimage.distance_transform_edt(~second, sampling=spacing)[first]
    back = ndimage.distance_transform_edt(~first, sampling=spacing)[second]
    return np.concatenate([there, back])


def load(path: Path) -> nib.Nifti1Image:
    """Open a label map.

    Raises:
        CannotCompare: It is no image.
    """
    try:
        return nib.load(path)
    except (ImageFileError, OSError, EOFError) as error:
        raise CannotCompare(f"{path} cannot be read: {error}", "Name NIfTI files.") from None


def pairs(first: Path, second: Path) -> Iterator[tuple[str, Path, Path]]:
    """The files of two folders that belong together, by their names, and that name.

    `a/CT-spleen.nii.gz` belongs to `a/CT.nii.gz`, `a/CT.nii` or `a/CT-spleen.nii.gz`.

    Raises:
        CannotCompare: A file of the first has none in the second, or there are no files.
    """
    ours = _by_name(first)
    if not ours:
        raise CannotCompare(f"{first} has no NIfTI files", "Name a folder of label maps.")
    theirs = belonging(second, ours)
    for name in sorted(ours):
        yield name, ours[name], theirs[name]


def belonging(folder: Path, names: Collection[str]) -> dict[str, Path]:
    """The files of a folder, by their names as `pairs` gives them.

    Raises:
        CannotCompare: One of the names has none.
    """
    found = _by_name(folder)
    missing = sorted(set(names) - found.keys())
    if missing:
        raise CannotCompare(
            f"{folder} has no file for {len(missing)} of {len(names)}, such as {missing[0]}",
            "Their names decide: CT-spleen.nii.gz belongs to CT.nii.gz.",
        )
    return found


def _by_name(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder).with_name(_stem(path.name))): path
        for path in sorted(folder.rglob("[!.]*"))
        if path.name.lower().endswith((".nii", ".nii.gz"))
    }


def _stem(name: str) -> str:
    for ending in _ENDINGS:
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return name.removesuffix(_OF_RESULTS)


def mask_of(image: nib.Nifti1Image) -> Mask:
    """Which voxels of a label map are marked."""
    mask: Mask = np.asanyarray(image.dataobj) != 0
    return mask


def box_of(mask: Mask) -> tuple[slice, ...]:
    """The smallest box that has all of a mask, which is not empty."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    found: tuple[slice, ...] = box
    return found
