"""Draws the segmentation for a person: three slices through the spleen, as radiologists view them.

The patient's right is on the viewer's left, anterior and superior are up, and all directions have
the same scale. For an oblique volume, the stored slices nearest to these planes are shown.
"""

from dataclasses import dataclass
from io import BufferedReader, BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pfms.volumes.geometry import header_affine, spacing_of, voxel_millilitres
from pfms.volumes.reader import NiftiReader

_LEVEL, _WIDTH = 40.0, 400.0  # Hounsfield units: soft tissue
_HIGHEST, _NARROWEST, _WIDEST = 384, 300, 1600  # pixels: all panels, without gaps and captions
_LONGEST_SIDE = 2048  # voxels of a slice that are used, along each side

_MARGIN, _GAP, _TITLE, _CAPTION = 20, 18, 44, 32  # pixels
_PAPER, _INK, _FAINT = (13, 17, 23), (236, 240, 244), (139, 148, 158)
_SPLEEN = (64, 224, 178)
_FILL, _FINER = 0.2, 3  # opacity of the mask; how much finer than a pixel its outline is drawn

_RIGHT, _ANTERIOR, _SUPERIOR = 0, 1, 2


@dataclass(frozen=True)
class _View:
    """A plane of the body and how it is shown: `across` runs rightwards, `down` downwards."""

    name: str
    normal: int
    across: int
    down: int
    left: str
    right: str


_VIEWS = (
    _View("axial", _SUPERIOR, _RIGHT, _ANTERIOR, "R", "L"),
    _View("coronal", _ANTERIOR, _RIGHT, _SUPERIOR, "R", "L"),
    _View("sagittal", _RIGHT, _ANTERIOR, _SUPERIOR, "A", "P"),
)


@dataclass(frozen=True)
class _Panel:
    """A slice, turned for the viewer, with its size in millimetres."""

    view: _View
    ct: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    width: float
    height: float


def preview_png(volume: Path | BufferedReader, labels: Path | BufferedReader) -> bytes:
    """Draw the labels on the volume: axial, coronal and sagittal, through the middle of the spleen.

    Both files are read in pieces: no more than three slices are held at a time.

    Args:
        volume: What the plugin got, as `admit.admit_volume` left it.
        labels: What `labels.write_labels` wrote for it.

    Returns:
        A PNG, about 500 pixels high and at most 1,700 wide.
    """
    with NiftiReader(labels) as source:
        shape = source.shape[:3]
        count, at = _middle_of_spleen(source)
    with NiftiReader(labels) as source:
        masks = _slices(source, at)
    with NiftiReader(volume) as source:
        slices = _slices(source, at)
        affine = header_affine(source.header)
    axes, signs = io_orientation(affine).astype(int).T
    size = np.array(shape) * spacing_of(affine)
    panels = []
    for view in _VIEWS:
        stored = [int(np.flatnonzero(axes == axis)[0]) for axis in (view.across, view.down)]
        normal = 3 - sum(stored)
        across, down = stored
        panels.append(
            _Panel(
                view,
                _turned(_windowed(slices[normal], source), stored, signs),
                _turned(masks[normal] != 0, stored, signs),
                float(size[across]),
                float(size[down]),
            )
        )
    millilitres = count * voxel_millilitres(affine)
    if count:
        picture = _compose(panels, f"spleen {millilitres:,.0f} ml", _SPLEEN)
    else:
        picture = _compose(panels, "no spleen found", _FAINT)
    png = BytesIO()
    picture.save(png, "PNG")
    return png.getvalue()


def _middle_of_spleen(labels: NiftiReader) -> tuple[int, tuple[int, int, int]]:
    """Count the spleen's voxels and find its centre of mass; without any, the volume's middle."""
    nx, ny, nz = labels.shape[:3]
    along = [np.zeros(length, np.int64) for length in (nx, ny, nz)]
    row = 0
    for values in labels.values(nx * ny * nz, row=nx):
        block = values.reshape(-1, nx) != 0
        if block.any():
            along[0] += np.count_nonzero(block, axis=0)
            k, j = np.divmod(np.arange(row, row + len(block)), ny)
            in_row = np.count_nonzero(block, axis=1)
            np.add.at(along[1], j, in_row)
            np.add.at(along[2], k, in_row)
        row += len(block)
    count = int(along[0].sum())
    if count == 0:
        return 0, (nx // 2, ny // 2, nz // 2)
    return count, (_middle(along[0]), _middle(along[1]), _middle(along[2]))


def _middle(numbers: NDArray[np.int64]) -> int:
    """Return the mean index, or the fullest one if there is nothing at the mean."""
    mean = round(float(np.average(np.arange(len(numbers)), weights=numbers)))
    return mean if numbers[mean] else int(np.argmax(numbers))


def _slices(source: NiftiReader, at: tuple[int, int, int]) -> list[NDArray[Any]]:
    """Cut the three slices through `at`: [k, j] at i, [k, i] at j, and [j, i] at k.

    A side of more than `_LONGEST_SIDE` voxels is thinned out.
    """
    nx, ny, nz = source.shape[:3]
    si, sj, sk = (ceil(length / _LONGEST_SIDE) for length in (nx, ny, nz))
    sizes = ((nz, sk, ny, sj), (nz, sk, nx, si), (ny, sj, nx, si))
    cuts = [np.zeros((ceil(a / s), ceil(b / t)), source.dtype) for a, s, b, t in sizes]
    row = 0
    for values in source.values(nx * ny * nz, row=nx):
        block = values.reshape(-1, nx)
        k, j = np.divmod(np.arange(row, row + len(block)), ny)
        row += len(block)
        on = (j % sj == 0) & (k % sk == 0)
        cuts[0][k[on] // sk, j[on] // sj] = block[on, at[0]]
        on = (j == at[1]) & (k % sk == 0)
        cuts[1][k[on] // sk] = block[on, ::si]
        on = (k == at[2]) & (j % sj == 0)
        cuts[2][j[on] // sj] = block[on, ::si]
    return cuts


def _windowed(stored: NDArray[Any], source: NiftiReader) -> NDArray[np.uint8]:
    values = stored * np.float64(source.slope) + source.intercept
    grey = (values - (_LEVEL - _WIDTH / 2)) / _WIDTH * 255.0
    return np.clip(grey, 0.0, 255.0).astype(np.uint8)


def _turned(cut: NDArray[Any], stored: list[int], signs: NDArray[Any]) -> NDArray[Any]:
    """Turn a cut, whose columns are the lower stored axis, for the viewer."""
    across, down = stored
    if across > down:
        cut = cut.T
    # Every axis is shown against its RAS direction: right on the left, anterior and superior up.
    return cut[:: -signs[down], :: -signs[across]]


def _compose(panels: list[_Panel], title: str, mark: tuple[int, int, int]) -> Image.Image:
    """Lay out the panels in a row, all at one scale; stack two of them if they are flat enough."""
    axial, coronal, sagittal = panels
    columns = [[axial], [coronal], [sagittal]]
    if coronal.height + sagittal.height < 0.8 * axial.height:
        columns = [[axial], [coronal, sagittal]]
    wide = sum(max(panel.width for panel in column) for column in columns)
    high = max(sum(panel.height for panel in column) for column in columns)
    scale = min(_HIGHEST / high, _WIDEST / wide)  # pixels per millimetre
    pictures = [[_draw(panel, scale) for panel in column] for column in columns]
    widths = [max(picture.width for picture in column) for column in pictures]
    heights = [sum(picture.height + _CAPTION for picture in column) for column in pictures]

    width = max(sum(widths) + _GAP * (len(widths) - 1), _NARROWEST) + 2 * _MARGIN
    sheet = Image.new("RGB", (width, _TITLE + max(heights) + _MARGIN), _PAPER)
    draw, middle = ImageDraw.Draw(sheet), _TITLE // 2
    draw.rounded_rectangle((_MARGIN, middle - 7, _MARGIN + 14, middle + 7), 3, fill=mark)
    draw.text((_MARGIN + 24, middle), title, _INK, ImageFont.load_default(20), anchor="lm")
    left = _MARGIN
    for views, column, column_width in zip(columns, pictures, widths, strict=True):
        top = _TITLE
        for panel, picture in zip(views, column, strict=True):
            draw.text((left, top + 8), panel.view.name, _FAINT, ImageFont.load_default(15))
            sheet.paste(picture, (left, top + _CAPTION))
            top += picture.height + _CAPTION
        left += column_width + _GAP
    return sheet


def _draw(panel: _Panel, scale: float) -> Image.Image:
    size = max(1, round(panel.width * scale)), max(1, round(panel.height * scale))
    picture = Image.fromarray(panel.ct).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    if panel.mask.any():
        colour = Image.new("RGB", size, _SPLEEN)
        for opacity in _shapes(panel.mask, size):
            picture.paste(colour, mask=opacity)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for mark, at, anchor in ((panel.view.left, 7, "lm"), (panel.view.right, size[0] - 7, "rm")):
        draw.text((at, size[1] // 2), mark, _INK, font, anchor, stroke_width=2, stroke_fill=_PAPER)
    return picture


def _shapes(mask: NDArray[np.bool_], size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Return the opacity of the mask's inside and of its outline, both smooth."""
    fine = size[0] * _FINER, size[1] * _FINER
    whole = Image.fromarray(mask.astype(np.uint8) * 255).resize(fine, Image.Resampling.BICUBIC)
    inside = whole.point([255 if value >= 128 else 0 for value in range(256)])
    edge = inside.filter(ImageFilter.GaussianBlur(_FINER * 0.9)).point(
        [min(255, round(400 * (1 - abs(value / 127.5 - 1)))) for value in range(256)]
    )
    fill = inside.point([round(value * _FILL) for value in range(256)])
    return fill.resize(size, Image.Resampling.BOX), edge.resize(size, Image.Resampling.BOX)
