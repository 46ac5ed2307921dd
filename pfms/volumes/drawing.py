"""Draws slices with their labels on one sheet, all at the same scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_MARGIN, _GAP, _TITLE, _CAPTION = 20, 18, 44, 32  # pixels
_PAPER, _INK, _FAINT = (13, 17, 23), (236, 240, 244), (139, 148, 158)
_SPLEEN = (64, 224, 178)
_FILL, _FINER = 0.2, 3  # opacity of the mask; how much finer than a pixel its outline is drawn

_NARROWEST = 300  # pixels between the margins: the title and the bar need them
_BAR = 0.2  # of the sheet's width, at most


@dataclass(frozen=True)
class Panel:
    """A slice, turned for the viewer.

    Attributes:
        grey: Brightness, 0 to 255.
        mask: What is labelled.
        width: Millimetres from its left edge to its right one.
        height: Millimetres from top to bottom.
        letters: What lies at the left, right, top and bottom.
        captions: What may be written above it; the first that fits is.
    """

    grey: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    width: float
    height: float
    letters: tuple[str, str, str, str]
    captions: tuple[str, ...]


def draw_sheet(
    columns: Sequence[Sequence[Panel]], title: str, *, found: bool, highest: int, widest: int
) -> Image.Image:
    """Draw panels in columns, each with its caption, under a title and a scale bar.

    Args:
        columns: The panels, from left to right and from top to bottom.
        title: What the sheet says about all of them.
        found: Whether there is a spleen, which colours the mark beside the title.
        highest: Pixels that the panels of a column may have together.
        widest: Pixels that the columns may have together.
    """
    wide = sum(max(panel.width for panel in column) for column in columns)
    high = max(sum(panel.height for panel in column) for column in columns)
    scale = min(highest / high, widest / wide)  # pixels per millimetre
    pictures = [[_draw(panel, scale) for panel in column] for column in columns]
    widths = [max(picture.width for picture in column) for column in pictures]
    heights = [sum(picture.height + _CAPTION for picture in column) for column in pictures]

    width = max(sum(widths) + _GAP * (len(widths) - 1), _NARROWEST) + 2 * _MARGIN
    sheet = Image.new("RGB", (width, _TITLE + max(heights) + _MARGIN), _PAPER)
    draw, middle = ImageDraw.Draw(sheet), _TITLE // 2
    mark = _SPLEEN if found else _FAINT
    draw.rounded_rectangle((_MARGIN, middle - 7, _MARGIN + 14, middle + 7), 3, fill=mark)
    draw.text((_MARGIN + 24, middle), title, _INK, ImageFont.load_default(20), anchor="lm")
    _draw_bar(draw, width - _MARGIN, middle, scale, _BAR * width)
    left = _MARGIN
    for number, (panels, column, wide) in enumerate(zip(columns, pictures, widths, strict=True)):
        top, last = _TITLE, number == len(columns) - 1
        for panel, picture in zip(panels, column, strict=True):
            caption = _fitting(panel.captions, width - _MARGIN - left if last else wide)
            draw.text((left, top + 8), caption, _FAINT, ImageFont.load_default(15))
            sheet.paste(picture, (left, top + _CAPTION))
            top += picture.height + _CAPTION
        left += wide + _GAP
    return sheet


def columns_of_grid(panels: Sequence[Panel], highest: int, widest: int) -> list[list[Panel]]:
    """Lay out panels of one size in rows, so that they become as large as possible."""
    width, height, count = panels[0].width, panels[0].height, len(panels)

    def scale(columns: int) -> float:
        return min(widest / (columns * width), highest / (-(-count // columns) * height))

    best = max(range(1, count + 1), key=scale)
    return [list(panels[column::best]) for column in range(best)]


def _fitting(captions: tuple[str, ...], width: int) -> str:
    font = ImageFont.load_default(15)
    return next((text for text in captions if font.getlength(text) <= width), captions[-1])


def _draw_bar(
    draw: ImageDraw.ImageDraw, right: int, middle: int, scale: float, longest: float
) -> None:
    """Draw a bar of 1, 2 or 5 times a power of ten millimetres, and its length beside it."""
    lengths = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
    length = max((each for each in lengths if each * scale <= longest), default=lengths[0])
    left = right - max(1, round(length * scale))
    draw.line((left, middle, right - 1, middle), _INK, 2)
    for end in (left, right - 1):
        draw.line((end, middle - 5, end, middle + 5), _INK)
    font = ImageFont.load_default(15)
    draw.text((left - 8, middle), f"{length:g} mm", _FAINT, font, anchor="rm")


def _draw(panel: Panel, scale: float) -> Image.Image:
    size = max(1, round(panel.width * scale)), max(1, round(panel.height * scale))
    picture = Image.fromarray(panel.grey).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    if panel.mask.any():
        colour = Image.new("RGB", size, _SPLEEN)
        for opacity in _shapes(panel.mask, size):
            picture.paste(colour, mask=opacity)
    _draw_letters(ImageDraw.Draw(picture), panel.letters, size)
    return picture


def _draw_letters(draw: Any, letters: tuple[str, str, str, str], size: tuple[int, int]) -> None:
    """Write the letters at the edges; above and below only where they leave the slice visible."""
    width, height = size
    font = ImageFont.load_default(15)
    places = [((7, height // 2), "lm"), ((width - 7, height // 2), "rm")]
    if height >= 90:
        places += [((width // 2, 5), "mt"), ((width // 2, height - 5), "mb")]
    for letter, (at, anchor) in zip(letters, places, strict=False):
        draw.text(at, letter, _INK, font, anchor, stroke_width=2, stroke_fill=_PAPER)


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
