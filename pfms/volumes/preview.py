"""Draws the segmentation for a person: slices through the spleen, as radiologists view them.

By default an axial, a coronal and a sagittal slice through the largest connected part of the
labels. The patient's right is on the viewer's left, anterior and superior are up, and a millimetre
is equally long in all directions.
"""

from collections.abc import Sequence
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfms.volumes.cuts import read_cuts
from pfms.volumes.drawing import Panel, columns_of_grid, draw_sheet
from pfms.volumes.geometry import Affine, header_affine, spacing_of, voxel_millilitres
from pfms.volumes.parts import LargestPart, largest_part
from pfms.volumes.planes import PLANES, View, Wanted, view_of
from pfms.volumes.reader import NiftiReader

_LEVEL, _WIDTH = 40.0, 400.0  # Hounsfield units: soft tissue
_WIDEST = 1600  # pixels: all panels, without gaps, captions and margins
_HIGHEST, _HIGHEST_ALONE, _HIGHEST_MOSAIC = 384, 720, 1200
_LONGEST_SIDE, _LONGEST_OF_MANY = 2048, 512  # voxels of a slice that are used, along each side

THREE_PLANES = Wanted()


def preview_png(
    volume: Path | BufferedReader,
    labels: Path | BufferedReader,
    wanted: Wanted = THREE_PLANES,
) -> bytes:
    """Draw the labels on slices of the volume; without any label, on slices through its middle.

    Both files are read in pieces: besides what is drawn, nothing of them is held.

    Args:
        volume: What the plugin got, as `admit.admit_volume` left it.
        labels: What `labels.write_labels` wrote for it.
        wanted: Which slices; it must have been checked.

    Returns:
        A PNG: at most 1,700 pixels wide and 520 high with three planes, 820 high with one; a mosaic
        of many narrow slices has up to 2,300 x 2,500.
    """
    with NiftiReader(labels) as source:
        shape = source.shape[:3]
        part = largest_part(source)
    with NiftiReader(volume) as source:
        affine = header_affine(source.header)
        shown = _shown(wanted, part, affine, shape)
        chosen = {(view.normal, index) for view, index in shown}
        longest = _LONGEST_SIDE if wanted.mosaic is None else _LONGEST_OF_MANY
        slices = read_cuts(source, chosen, longest)
        slope, intercept = source.slope, source.intercept
    with NiftiReader(labels) as source:
        masks = read_cuts(source, chosen, longest)
    size = np.array(shape) * spacing_of(affine)
    panels = [
        Panel(
            _turned(_windowed(slices[view.normal, index], slope, intercept), view),
            _turned(masks[view.normal, index] != 0, view),
            float(size[view.across]),
            float(size[view.down]),
            view.letters,
            _captions(view, index, shape[view.normal]),
        )
        for view, index in shown
    ]
    png = BytesIO()
    _compose(panels, wanted, part.labelled, affine).save(png, "PNG")
    return png.getvalue()


def _shown(
    wanted: Wanted, part: LargestPart, affine: Affine, shape: Sequence[int]
) -> list[tuple[View, int]]:
    """List what is shown: each slice as its view and its stored index."""
    if wanted.mosaic is not None:
        view = view_of(wanted.plane or "axial", affine)
        first, last = part.first[view.normal], part.last[view.normal]
        number = min(wanted.mosaic, last - first + 1)
        steps = (np.arange(number) + 0.5) / number * (last - first + 1)
        indices = [first + int(step) for step in steps]
        return [(view, index) for index in (indices[::-1] if view.flipped[0] else indices)]
    if wanted.plane is None:
        views = [view_of(plane, affine) for plane in PLANES]
        return [(view, part.middle[view.normal]) for view in views]
    view = view_of(wanted.plane, affine)
    if wanted.slice is None:
        return [(view, part.middle[view.normal])]
    return [(view, view.number(wanted.slice, shape[view.normal]))]


def _captions(view: View, index: int, length: int) -> tuple[str, ...]:
    number = view.number(index, length)
    return f"{view.plane} {number} (0 to {length - 1})", f"{view.plane} {number}", f"{number}"


def _windowed(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[np.uint8]:
    values = stored * np.float64(slope) + intercept
    grey = (values - (_LEVEL - _WIDTH / 2)) / _WIDTH * 255.0
    return np.clip(grey, 0.0, 255.0).astype(np.uint8)


def _turned(cut: NDArray[Any], view: View) -> NDArray[Any]:
    """Turn a cut, whose columns are the lower stored axis, for the viewer."""
    if view.across > view.down:
        cut = cut.T
    _, across, down = view.flipped
    return cut[:: -1 if down else 1, :: -1 if across else 1]


def _compose(panels: list[Panel], wanted: Wanted, labelled: int, affine: Affine) -> Image.Image:
    millilitres = labelled * voxel_millilitres(affine)
    title = f"spleen {millilitres:,.0f} ml" if labelled else "no spleen found"
    highest = _HIGHEST
    columns = [[panel] for panel in panels]
    if wanted.mosaic is not None:
        highest = _HIGHEST_MOSAIC
        columns = columns_of_grid(panels, highest, _WIDEST)
    elif wanted.plane is not None:
        highest = _HIGHEST_ALONE
    else:
        axial, coronal, sagittal = panels
        if coronal.height + sagittal.height < 0.8 * axial.height:  # they are flat
            columns = [[axial], [coronal, sagittal]]
    return draw_sheet(columns, title, found=labelled > 0, highest=highest, widest=_WIDEST)
