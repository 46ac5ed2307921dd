"""Turns the plugin's output into labels on the volume's own grid, and checks it on the way."""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from pfms.errors import BadResult, RequestError
from pfms.plugin.types import Floats
from pfms.storage.files import writing_atomically
from pfms.volumes.geometry import header_affine, loaded_affine, same, voxel_millilitres
from pfms.volumes.place import pixdim_of_upload
from pfms.volumes.reader import PIECE, TAIL, GzipWriter, NiftiReader, OnPart

Mask = NDArray[np.bool_]

JUDGE_SECONDS = 300.0
"""The most that reading one file of a result may take; 512 x 512 x 400 voxels take about five."""

_LABEL_INTENT = 1002  # NIFTI_INTENT_LABEL
_GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True)
class LabelFacts:
    """What was segmented.

    Attributes:
        spleen_voxels: How many voxels have label 1.
        spleen_ml: Their volume in millilitres.
        voxels_sha256: Of the label bytes, unpacked, in file order, without the header.
    """

    spleen_voxels: int
    spleen_ml: float
    voxels_sha256: str


def write_labels(
    onehot: Path | BufferedReader,
    volume: Path | BufferedReader,
    target: Path | BufferedWriter,
    *,
    seconds: float = JUDGE_SECONDS,
    on_part: OnPart | None = None,
) -> LabelFacts:
    """Write the plugin's segmentation as labels: uint8, 0 background and 1 spleen.

    The labels have the grid of the upload (shape, pixdim, sform, qform, codes, units and version of
    NIfTI) and none of the texts in its header. What no program could use is replaced: an sform that
    is zero, singular or not finite by the qform, under the same code, and a pixdim that is zero or
    not finite by the spacing of the sform. Memory use does not grow with the volume.

    Args:
        onehot: The plugin's `*_seg.nii.gz`: (x, y, z, 2), one-hot, background first.
        volume: What the plugin got, as `admit.admit_volume` left it.
        target: Ends in `.nii.gz`; a path appears once the labels are complete.
        seconds: The most that reading `onehot` may take.
        on_part: Called while `onehot` is read.

    Raises:
        BadResult: The segmentation is missing or not readable, does not lie where the volume does,
            or is not one-hot; or it takes too long to read.
    """
    with NiftiReader(volume) as source:
        header, grid = source.stored, source.shape[:3]
        affine, loaded = header_affine(source.header), loaded_affine(source.header)
        pixdim = pixdim_of_upload(source)
    with _result(onehot, seconds, on_part) as result:
        if result.shape != (*grid, 2):
            raise BadResult(
                f"The plugin's segmentation has the shape {_times(result.shape)}, "
                f"not {_times((*grid, 2))} as expected."
            )
        found = header_affine(result.header)
        if not (same(found, affine) or same(found, loaded)):
            raise BadResult("The affine of the plugin's segmentation is not that of the volume.")
        opened = writing_atomically(target) if isinstance(target, Path) else nullcontext(target)
        with opened as part, GzipWriter(part) as labels:
            labels.write(_label_header(header, grid, pixdim).binaryblock + bytes(4))
            spleen, checksum = _decode(result, labels.write)
    return LabelFacts(spleen, spleen * voxel_millilitres(affine), checksum)


def labels_checksum(onehot: Path | BufferedReader) -> str:
    """Return the `voxels_sha256` of the labels that `write_labels` would write.

    Raises:
        BadResult: The segmentation is missing, not readable or not one-hot.
    """
    with _result(onehot) as result:
        if len(result.shape) != 4 or result.shape[3] != 2:
            raise BadResult(
                f"The plugin's segmentation has the shape {_times(result.shape)}, "
                "not four axes with a last one of length 2."
            )
        return _decode(result)[1]


def check_logits(
    logits: Path | BufferedReader,
    most: int,
    *,
    seconds: float = JUDGE_SECONDS,
    on_part: OnPart | None = None,
) -> None:
    """Check that the plugin's `output.nii.gz` is whole and all its numbers are finite.

    It may be empty: the plugin crops a volume that is all air to nothing.

    Args:
        logits: The file.
        most: The most voxels that it may have.
        seconds: The most that reading it may take.
        on_part: Called while it is read.

    Raises:
        BadResult: It is not whole, a number is not finite, or it is too large.
    """
    with _result(logits, seconds, on_part) as result:
        if prod(result.shape) > most:
            raise BadResult(
                f"The plugin's logits have the shape {_times(result.shape)}, "
                f"more than {most} voxels."
            )
        for values in result.values(prod(result.shape)):
            if not np.isfinite([values.min(), values.max()]).all():
                raise BadResult("The plugin's logits are not all finite.")
        result.tail()


class _Timed(BufferedReader):
    """A file that can be read until a point in time, from its start."""

    def __init__(self, file: BufferedReader, seconds: float) -> None:
        super().__init__(file.raw)
        self._until = time.monotonic() + seconds
        self._late = f"Reading the plugin's {Path(file.name).name} took over {seconds:g} seconds."

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual."""
        if time.monotonic() > self._until:
            raise BadResult(self._late)
        return super().read(size)

    def read1(self, size: int = -1, /) -> bytes:
        """Read as usual."""
        if time.monotonic() > self._until:
            raise BadResult(self._late)
        return super().read1(size)


@contextmanager
def _result(
    source: Path | BufferedReader, seconds: float = JUDGE_SECONDS, on_part: OnPart | None = None
) -> Iterator[NiftiReader]:
    """Open a file that the plugin wrote; anything wrong with it is a `BadResult`.

    Its own size, and that of what it unpacks to, are bounded by its header, which the caller
    compares with what the plugin should have written. The clock is for what nobody foresaw.
    """
    if isinstance(source, Path):
        try:
            opened = source.open("rb")
        except FileNotFoundError as error:
            raise BadResult(f"The plugin did not write {source.name}.") from error
        with opened, _result(opened, seconds, on_part) as reader:
            yield reader
        return
    name = Path(source.name).name
    timed = _Timed(source, seconds)
    try:
        with NiftiReader(timed, on_part) as reader:
            if reader.offset > TAIL:
                raise BadResult(f"The header of the plugin's {name} puts its voxels far away.")
            if reader.file_size > reader.size + reader.size // 64 + 2 * TAIL:
                raise BadResult(f"The plugin's {name} is far larger than its header says.")
            yield reader
    except RequestError as error:
        raise BadResult(f"The plugin's {name} cannot be used: {error.detail}") from error
    finally:
        timed.detach()  # `source` stays open


def _label_header(
    volume: Nifti1Header, grid: tuple[int, ...], pixdim: Floats | None
) -> Nifti1Header:
    header = type(volume)(endianness="<")
    header.set_data_shape(grid)
    header.set_data_dtype(np.uint8)
    for field in _GEOMETRY:
        header[field] = volume[field]
    if pixdim is not None:
        header["pixdim"][1:4] = pixdim
    header["intent_code"] = _LABEL_INTENT
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0  # a slope of 0 makes some viewers show nothing
    return header


def _decode(result: NiftiReader, write: Callable[[Mask], None] | None = None) -> tuple[int, str]:
    """Read both channels once; return the number of spleen voxels and the checksum of the labels.

    The channels lie one after the other in the file. They are one-hot if both give the same
    labels, which a CRC of each piece shows without keeping either in memory.
    """
    count = prod(result.shape[:3])
    length = PIECE // result.dtype.itemsize
    # Memory that is reused: to get it from the kernel takes longer than to compare it.
    current, other = np.empty(length, bool), np.empty(length, bool)
    digest, spleen, seen = hashlib.sha256(), 0, []
    with ThreadPoolExecutor(1, "pfms-hash") as beside:
        hashing: Future[None] | None = None
        for values in result.values(count):
            ones = _ones(result, values, current)
            labels = np.logical_not(ones, out=ones)
            if hashing is not None:
                hashing.result()
            if len(labels) == length:
                hashing = beside.submit(digest.update, labels.data)
            else:  # the last piece, or the only one of a small volume, which is not worth a thread
                digest.update(labels.data)
            if write:
                write(labels)
            seen.append(isal_zlib.crc32(labels))
            spleen += int(np.count_nonzero(labels))
            current, other = other, current
    for values, expected in zip(result.values(count), seen, strict=True):
        if isal_zlib.crc32(_ones(result, values, current)) != expected:
            raise BadResult(
                "The channels of the plugin's segmentation do not sum to one everywhere."
            )
    result.tail()
    return spleen, digest.hexdigest()


def _ones(result: NiftiReader, values: NDArray[Any], into: Mask) -> Mask:
    """Return which voxels are one, provided that all others are zero; it is the start of `into`."""
    into = into[: len(values)]
    if result.dtype.kind == "f" and result.dtype.itemsize == 4 and not result.scaled:
        # As the plugin writes it, and quick to compare as bits. A one has one half that is not
        # zero: if there are as many such halves as ones, all others are zero.
        one = np.ones(1, result.dtype).view(np.uint32)[0]
        np.equal(values.view(np.uint32), one, out=into)
        if np.count_nonzero(values.view(np.uint16)) == np.count_nonzero(into):
            return into
    if result.scaled:
        with np.errstate(all="ignore"):
            values = (values * np.float64(result.slope) + result.intercept).astype(np.float32)
    np.equal(values, 1, out=into)
    if np.count_nonzero(values) != np.count_nonzero(into):  # NaN is neither zero nor one
        raise BadResult("The plugin's segmentation holds values other than 0 and 1.")
    return into


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
