"""The single images of a CT series, as their headers describe them. Needs the extra `dicom`."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from pfms.local.dicom_series import CannotConvert

_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
_ORIGINAL = "Export the original images of the scanner, uncompressed or compressed without loss."


@dataclass(frozen=True)
class Plane:
    """An image of a series. Positions and directions are in DICOM's LPS.

    Attributes:
        file: Where it is.
        frame: Which image of the file, from 0.
        size: Rows and columns.
        position: The centre of the first pixel, mm.
        axes: Two unit vectors: the direction of a row, then that of a column.
        spacing: Between rows and between columns, mm.
        slope: Hounsfield units are `slope` times the stored value plus `intercept`.
        intercept: See `slope`.
        stored: The least and the greatest value that a pixel can have.
        space: The UID of the frame of reference; may be empty.
    """

    file: Path
    frame: int
    size: tuple[int, int]
    position: tuple[float, ...]
    axes: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: float
    intercept: float
    stored: tuple[int, int]
    space: str


def planes_of(file: Path) -> Iterator[Plane]:
    """The images of a file: one, or many if it is an enhanced CT.

    Raises:
        CannotConvert: They are not in Hounsfield units as the scanner made them, or something that
            every CT image has is missing.
    """
    try:
        header = dcmread(file, stop_before_pixels=True)
        _check(header, file)
        for frame in range(int(header.get("NumberOfFrames") or 1)):
            yield _plane(header, file, frame)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        detail = f"the header of {file} is damaged: {error}"
        raise CannotConvert(detail, _ORIGINAL) from error


def _plane(header: Dataset, file: Path, frame: int) -> Plane:
    def of(sequence: str, keyword: str, count: int) -> tuple[float, ...]:
        """Numbers; if the file has several images, they are in a sequence, of one or of all."""
        places = [header]
        if "PerFrameFunctionalGroupsSequence" in header:
            groups = [header.PerFrameFunctionalGroupsSequence[frame]]
            groups += header.get("SharedFunctionalGroupsSequence") or []
            places = [group[sequence].value[0] for group in groups if sequence in group]
        values = [place.get(keyword) for place in places]
        value = next((value for value in values if value is not None), None)
        if value is None:
            raise CannotConvert(f"{file} has no {keyword}", _ORIGINAL)
        numbers = tuple(map(float, value if count > 1 else [value]))
        if len(numbers) != count or not all(map(isfinite, numbers)):
            raise ValueError(f"{keyword} is {value}")
        return numbers

    (slope,) = of("PixelValueTransformationSequence", "RescaleSlope", 1)
    (intercept,) = of("PixelValueTransformationSequence", "RescaleIntercept", 1)
    bits = int(header.BitsStored)
    lowest = -(1 << bits - 1) if header.PixelRepresentation else 0
    return Plane(
        file,
        frame,
        (int(header.Rows), int(header.Columns)),
        of("PlanePositionSequence", "ImagePositionPatient", 3),
        of("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        of("PixelMeasuresSequence", "PixelSpacing", 2),
        slope,
        intercept,
        (lowest, lowest + (1 << bits) - 1),
        str(header.get("FrameOfReferenceUID", "")),
    )


def _check(header: Dataset, file: Path) -> None:
    syntax = header.file_meta.TransferSyntaxUID
    if syntax in _LOSSY or header.get("LossyImageCompression") == "01":
        raise CannotConvert(f"{file} was compressed with loss", _ORIGINAL)
    if syntax.is_private or (syntax.is_encapsulated and not get_decoder(syntax).is_available):
        detail = f"{file} is compressed in a way that is not supported: {syntax.name}"
        raise CannotConvert(detail, _ORIGINAL)
    if header.get("SamplesPerPixel") != 1:
        raise CannotConvert(f"{file} is a colour picture", _ORIGINAL)
    if header.get("RescaleType", "HU") not in ("HU", ""):
        detail = f"its values are no Hounsfield units, but {header.RescaleType}"
        raise CannotConvert(detail, "Choose another series of the examination with --series.")
