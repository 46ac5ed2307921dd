"""DICOM files, sorted into the CT series that they belong to. Needs the extra `dicom`."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
)

from pfms.client.problems import ClientError

_CT = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_READ = (
    "ImageType",
    "Modality",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SOPClassUID",
    "SOPInstanceUID",
)


class CannotConvert(ClientError):
    """A series of DICOM files is no volume, or its result cannot be written as DICOM SEG."""

    code = "dicom"


@dataclass(frozen=True)
class Series:
    """The images of a CT series, without its localizers.

    Attributes:
        uid: Its SeriesInstanceUID.
        number: Its SeriesNumber, if it has one.
        description: Its SeriesDescription; may be empty.
        files: Each image once, in the order of their paths.
    """

    uid: str
    number: int | None
    description: str
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """How a person tells it from the other series of a folder."""
        return "series" if self.number is None else f"series {self.number}"

    @property
    def mark(self) -> str:
        """What tells it from every other series, short enough for a file's name."""
        return hashlib.sha256(self.uid.encode()).hexdigest()[:8]


def ct_series(
    files: Iterable[Path], wanted: Sequence[str], on_skip: Callable[[str], None]
) -> list[Series]:
    """Sort files into CT series.

    Args:
        files: DICOM files, in any order; a DICOMDIR is passed over.
        wanted: UIDs or descriptions (upper or lower case, with `*` for any text) of the series to
            take; none for all.
        on_skip: Called with a line for every file and every series that is left out for what it is.

    Raises:
        ValueError: No series is one of those wanted.
    """
    found: dict[str, list[tuple[Path, Dataset]]] = {}
    for file in files:
        try:
            header = dcmread(file, stop_before_pixels=True, specific_tags=list(_READ))
        except (InvalidDicomError, OSError, ValueError, AttributeError) as error:
            on_skip(f"{file} is left out: it cannot be read ({error})")
            continue
        if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            continue
        if "SeriesInstanceUID" not in header:
            on_skip(f"{file} is left out: it has no SeriesInstanceUID")
            continue
        found.setdefault(str(header.SeriesInstanceUID), []).append((file, header))
    chosen = {uid: images for uid, images in found.items() if _is_wanted(images[0][1], wanted)}
    if wanted and not chosen:
        there = "; ".join(f"{_describe(images)} ({uid})" for uid, images in found.items())
        raise ValueError(f"no DICOM series is {' or '.join(wanted)}, but there are: {there}")
    series = (_series(uid, images, on_skip) for uid, images in chosen.items())
    return [each for each in series if each is not None]


def _is_wanted(header: Dataset, wanted: Sequence[str]) -> bool:
    uid, description = str(header.SeriesInstanceUID), _description(header).lower()
    return not wanted or any(
        text == uid or text.lower() == description or fnmatchcase(description, text.lower())
        for text in wanted
    )


def _series(
    uid: str, images: Sequence[tuple[Path, Dataset]], on_skip: Callable[[str], None]
) -> Series | None:
    """What of a series is a volume, if there is anything."""
    header = images[0][1]
    ct = [each for each in images if each[1].get("SOPClassUID") in _CT]
    if not ct:
        modality = header.get("Modality") or "no modality"
        on_skip(f"{_describe(images)} is left out: it is no CT ({modality})")
        return None
    slices = [each for each in ct if "LOCALIZER" not in (each[1].get("ImageType") or ())]
    if not slices:
        on_skip(f"{_describe(images)} is left out: it is a localizer")
        return None
    once = {str(each.get("SOPInstanceUID")): file for file, each in slices}  # there may be copies
    number = header.get("SeriesNumber")
    return Series(
        uid,
        None if number is None else int(number),
        _description(header),
        tuple(sorted(once.values())),
    )


def _description(header: Dataset) -> str:
    return str(header.get("SeriesDescription") or "").strip()


def _describe(images: Sequence[tuple[Path, Dataset]]) -> str:
    file, header = images[0]
    words = [f"series {header.get('SeriesNumber') or '-'}", _description(header)]
    return f"{', '.join(filter(None, words))}, in {file.parent}"
