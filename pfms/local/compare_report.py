"""A page about many comparisons of segmentations, with a picture. Needs the extra `compare`."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pfms.local.compare import CannotCompare, Comparison, box_of, mask_of, on_one_grid

_LONGEST = 320  # pixels: of a slice
_AROUND = 30.0  # mm shown around what is marked
_BOTH, _FIRST, _SECOND = (235, 235, 235), (235, 70, 60), (70, 140, 255)
_LEVEL, _WIDTH = 40.0, 400.0  # Hounsfield units: the abdomen

HEAD = ("NAME", "DICE", "FIRST ML", "SECOND ML", "MEAN MM", "95% MM", "MAX MM")


def picture(
    first: nib.Nifti1Image, second: nib.Nifti1Image, ct: nib.Nifti1Image | None = None
) -> bytes:
    """A PNG of what is marked and a little around it: of each plane, the slice that differs most.

    With the CT the slices are grey, and have the outlines of both masks on them; without it the
    masks are filled. Red is the first, blue the second, white both. The patient's right, or in the
    sagittal slice anterior, is on the left.

    Raises:
        CannotCompare: The CT is on another grid.
    """
    if ct is not None:
        ct = nib.squeeze_image(ct)
        if not on_one_grid(first, ct):
            detail = "the CT is on another grid than its label maps"
            raise CannotCompare(detail, "Name the CT that was segmented.")
    ours, theirs = (nib.as_closest_canonical(image) for image in (first, second))
    a, b = mask_of(ours), mask_of(theirs)
    spacing = nib.affines.voxel_sizes(ours.affine)
    around = [round(_AROUND / mm) for mm in spacing]
    box = tuple(slice(None) for _ in range(3))
    if (a | b).any():
        ends = zip(box_of(a | b), around, strict=True)
        box = tuple(slice(max(0, part.start - n), part.stop + n) for part, n in ends)
    a, b = a[box], b[box]
    counted = (a ^ b) if (a ^ b).any() else (a | b)
    grey = np.zeros(a.shape, np.uint8)
    if ct is not None:
        hu = np.asarray(nib.as_closest_canonical(ct).dataobj[box], np.float32)
        grey = ((hu - _LEVEL) / _WIDTH * 255 + 127.5).clip(0, 255).astype(np.uint8)
    whole = Image.new("RGB", (3 * _LONGEST + 16, _LONGEST), (40, 40, 40))
    for n, axis in enumerate((2, 1, 0)):
        others = tuple(other for other in range(3) if other != axis)
        at = int(counted.sum(axis=others).argmax())
        cuts = [np.take(each, at, axis).T[::-1, ::-1] for each in (grey, a, b)]
        mm = cuts[0].shape[1] * spacing[others[0]], cuts[0].shape[0] * spacing[others[1]]
        size = max(1, round(mm[0] * _LONGEST / max(mm))), max(1, round(mm[1] * _LONGEST / max(mm)))
        whole.paste(_drawn(cuts, size, outlines=ct is not None), (n * (_LONGEST + 8), 0))
    content = io.BytesIO()
    whole.save(content, "PNG")
    return content.getvalue()


def _drawn(cuts: Sequence[NDArray[Any]], size: tuple[int, int], *, outlines: bool) -> Image.Image:
    """A slice with both masks, or their outlines; `cuts` are the grey slice and the masks."""
    grey, *both = cuts
    shown = np.array(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC).convert("RGB"))
    masks = []
    for mask in both:
        large = Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        inside = np.asarray(large.filter(ImageFilter.MinFilter(5))) if outlines else 0
        masks.append(np.asarray(large) > inside)
    one, two = masks
    shown[one & ~two], shown[two & ~one], shown[one & two] = _FIRST, _SECOND, _BOTH
    return Image.fromarray(shown)


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
<p>Red: the first. Blue: the second. White: both.</p>
<table><tr>{head}</tr>
{rows}
</table>
</html>
"""


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
