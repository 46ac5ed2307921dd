"""How alike two segmentations are, and a report about many. Needs the extra `compare`."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Mask = NDArray[np.bool_]

_SAME_GRID = 1e-3  # mm: how far the affines of one grid may be apart
_ENDINGS = (".gz", ".nii")
_OF_RESULTS = "-spleen"  # which `pfms infer` puts after the name of a volume
_PICTURE = 320  # pixels: the longer side of one slice
_COLOURS = {"both": (235, 235, 235), "first": (220, 60, 50), "second": (60, 120, 230)}


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
    if first.shape != second.shape or not np.allclose(first.affine, second.affine, 0, _SAME_GRID):
        raise CannotCompare(
            f"{name}: the two are on different grids", "Resample one of them to the other's grid."
        )
    a, b = _mask(first), _mask(second)
    voxel_ml = abs(np.linalg.det(first.affine[:3, :3])) / 1000
    sums = int(a.sum()), int(b.sum())
    dice = 2 * int((a & b).sum()) / sum(sums) if any(sums) else 1.0
    mean = p95 = largest = None
    if all(sums):
        mm = surface_distances(a, b, nib.affines.voxel_sizes(first.affine))
        mean, p95, largest = float(mm.mean()), float(np.percentile(mm, 95)), float(mm.max())
    return Comparison(name, dice, sums[0] * voxel_ml, sums[1] * voxel_ml, mean, p95, largest)


def surface_distances(a: Mask, b: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """From each voxel of the one surface to the nearest of the other, both ways, in mm.

    Args:
        a: Not empty; a voxel with a neighbour outside, across a face, is of the surface.
        b: Likewise, of the same shape.
        spacing: mm between voxel centres, along axes at right angles.
    """
    box = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in _box(a | b))
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
    ours, theirs = _by_name(first), _by_name(second)
    if not ours:
        raise CannotCompare(f"{first} has no NIfTI files", "Name a folder of label maps.")
    missing = sorted(ours.keys() - theirs.keys())
    if missing:
        raise CannotCompare(
            f"{second} has no file for {len(missing)} of {first}, such as {missing[0]}",
            "Their names decide: CT-spleen.nii.gz belongs to CT.nii.gz.",
        )
    for name in sorted(ours):
        yield name, ours[name], theirs[name]


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


def _mask(image: nib.Nifti1Image) -> Mask:
    mask: Mask = np.asanyarray(image.dataobj) != 0
    return mask


def _box(mask: Mask) -> tuple[slice, ...]:
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    found: tuple[slice, ...] = box
    return found


# --- the report ----------------------------------------------------------------------------------


def picture(first: nib.Nifti1Image, second: nib.Nifti1Image) -> bytes:
    """A PNG of what is marked and little around it: of each plane, the slice that differs most.

    White is in both, red in the first alone, blue in the second alone. The patient's right, or
    in the sagittal slice anterior, is on the left.
    """
    ours, theirs = (nib.as_closest_canonical(image) for image in (first, second))
    a, b = _mask(ours), _mask(theirs)
    if (a | b).any():
        box = tuple(slice(max(0, part.start - 8), part.stop + 8) for part in _box(a | b))
        a, b = a[box], b[box]
    spacing = nib.affines.voxel_sizes(ours.affine)
    slices = []
    for axis in (2, 1, 0):
        counted = (a ^ b) if (a ^ b).any() else (a | b)
        others = tuple(other for other in range(3) if other != axis)
        at = int(counted.sum(axis=others).argmax())
        one, two = (np.take(mask, at, axis).T[::-1, ::-1] for mask in (a, b))
        shown = np.zeros((*one.shape, 3), np.uint8)
        for part, name in ((one & two, "both"), (one & ~two, "first"), (two & ~one, "second")):
            shown[part] = _COLOURS[name]
        mm = one.shape[1] * spacing[others[0]], one.shape[0] * spacing[others[1]]
        size = [max(1, round(length * _PICTURE / max(mm))) for length in mm]
        slices.append(Image.fromarray(shown).resize((size[0], size[1]), Image.Resampling.NEAREST))
    whole = Image.new("RGB", (3 * _PICTURE + 16, _PICTURE), (40, 40, 40))
    for n, each in enumerate(slices):
        whole.paste(each, (n * (_PICTURE + 8), 0))
    content = io.BytesIO()
    whole.save(content, "PNG")
    return content.getvalue()


def report(found: Sequence[Comparison], worst: bytes) -> str:
    """A page by itself: the worst with its picture, then all, the worst first."""
    ordered = sorted(found, key=lambda each: each.dice)
    mean = sum(each.dice for each in found) / len(found)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(each)) + "</tr>"
        for each in ordered
    )
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Comparison of segmentations</title>
<style>
body {{ font: 16px/1.4 sans-serif; margin: 2em; }}
td, th {{ padding: 0.2em 1em 0.2em 0; text-align: left; }}
img {{ max-width: 100%; }}
</style>
<h1>{len(found)} segmentations compared</h1>
<p>Dice: {mean:.4f} on average, {ordered[0].dice:.4f} at worst ({html.escape(ordered[0].name)}).</p>
<img src="data:image/png;base64,{base64.b64encode(worst).decode()}"
 alt="Slices of {html.escape(ordered[0].name)}, axial, coronal, sagittal">
<p>White: in both. Red: in the first alone. Blue: in the second alone.</p>
<table><tr>{head}</tr>
{rows}
</table>
</html>
"""


HEAD = ("NAME", "DICE", "FIRST ML", "SECOND ML", "MEAN MM", "95% MM", "MAX MM")


def cells(each: Comparison) -> tuple[str, ...]:
    """A comparison as the cells of a table."""
    distances = (each.mean_mm, each.p95_mm, each.max_mm)
    return (
        each.name,
        f"{each.dice:.4f}",
        f"{each.first_ml:.1f}",
        f"{each.second_ml:.1f}",
        *("-" if mm is None else f"{mm:.2f}" for mm in distances),
    )
