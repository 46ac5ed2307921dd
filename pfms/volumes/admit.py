"""Checks an uploaded volume before the plugin sees it, and makes the copy that the plugin gets.

`reader` knows the file format, `place` what the header says about the geometry.
"""

from dataclasses import dataclass
from math import inf, isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np

from pfms.errors import TooLarge, UnsupportedNifti
from pfms.plugin import PLUGIN
from pfms.storage.files import writing_atomically
from pfms.volumes.geometry import Affine, orientation_of, spacing_of
from pfms.volumes.gunzip import clear_names
from pfms.volumes.memory import NO_LIMIT, RunMemory
from pfms.volumes.place import Place, find_place
from pfms.volumes.reader import TAIL, GzipWriter, NiftiReader

_FLOAT32_MAX = float(np.finfo(np.float32).max)  # the plugin works in single precision
_LONGEST_AXIS = 32_767  # the plugin writes NIfTI-1, whose axes cannot be longer
_AIR_IS_BELOW = -100.0  # Hounsfield units

# A CT holds noise, and deflate makes it no smaller than a tenth; a bomb becomes a thousandth.
_MOST_RATIO = 500
_SMALL_BYTES = 64 << 20  # what unpacks to less does no harm

_ONE_VOLUME = "Send one 3-D volume without colours; split a series first (fslsplit)."
_SMALLER_GRID = (
    "Check that its spacing is in millimetres: a header in metres or micrometres is the usual "
    "cause. If it is, crop the volume to the abdomen."
)


@dataclass(frozen=True)
class VolumeLimits:
    """What a volume may demand of the machine.

    Attributes:
        max_volume_bytes: Header and voxels, unpacked.
        max_grid_voxels: Voxels after the plugin has resampled it.
        memory: What its run may use.
    """

    max_volume_bytes: int
    max_grid_voxels: int
    memory: RunMemory = NO_LIMIT


@dataclass(frozen=True)
class VolumeFacts:
    """What is known about a volume; nothing in it identifies a person.

    Attributes:
        shape: Voxels along the stored axes (x, y, z).
        spacing: Millimetres along them.
        orientation: The direction in which each of them mostly runs, such as `RAS` or `LPS`.
        dtype: The stored type, such as `int16`.
        scaled: Whether a voxel differs from its stored value.
        affine: From voxel indices to millimetres in RAS, 4 x 4, row by row.
        nifti_version: 1 or 2.
        minimum: The smallest value, scaled: Hounsfield units, if it is a CT.
        maximum: The largest value, scaled.
        memory: Bytes that its run is estimated to need.
        warnings: What a person should know before trusting the result, one sentence each.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    dtype: str
    scaled: bool
    affine: tuple[tuple[float, ...], ...]
    nifti_version: int
    minimum: float
    maximum: float
    memory: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON types."""
        return {
            "shape": list(self.shape),
            "spacing": list(self.spacing),
            "orientation": self.orientation,
            "dtype": self.dtype,
            "scaled": self.scaled,
            "affine": [list(row) for row in self.affine],
            "nifti_version": self.nifti_version,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "memory": self.memory,
            "warnings": list(self.warnings),
        }


def admit_volume(upload: Path, target: Path, limits: VolumeLimits) -> VolumeFacts:
    """Check an upload, and put what the plugin gets at `target`: one gzipped 3-D volume.

    An upload that already is one is moved there, without the file name that gzip may have put into
    it. Any other is rewritten, without its header
    extensions, with nothing after the last voxel, and with a header that makes the plugin place it
    where the client is told it lies (`place`). Memory use does not grow with the volume.

    Args:
        upload: What was sent; it may be gone afterwards.
        target: Ends in `.nii.gz`, on the same file system; does not exist after an error.
        limits: What it may demand of the machine.

    Raises:
        NotANifti: Its bytes say so, whatever its name.
        TruncatedNifti: It has fewer voxels than its header says, or its gzip stream is damaged.
        UnsupportedNifti: It is not one finite, scalar 3-D volume in a usable place and grid.
        TooLarge: It unpacks to more than `limits` or its own header allow.
        NoMemory: Its run would need more memory than `limits` allow.
    """
    with NiftiReader(upload) as source:
        shape = _shape(source)
        _check_size(source, upload.stat().st_size, limits)
        place = find_place(source)
        _check_grid(shape, place.loaded, limits)
        x, y, z = (float(length) for length in spacing_of(place.affine))
        memory = limits.memory.needed(shape, (x, y, z), source.dtype.name, source.scaled)
        limits.memory.check(memory)
        as_it_is = source.gzipped and not source.extended and len(source.shape) == 3
        as_it_is = as_it_is and place.corrected is None
        if as_it_is:
            least, greatest, tail = _read_voxels(source)
            as_it_is = tail == 0 and clear_names(upload, source.named)
    if as_it_is:
        upload.replace(target)
    else:
        least, greatest, tail = _write_copy(upload, place, target)
    warnings = list(place.warnings)
    if tail:
        warnings.append("The bytes after the last voxel in the file were left out.")
    if least >= _AIR_IS_BELOW:
        warnings.append(
            f"The volume does not look like Hounsfield units: none of its values is below "
            f"{_AIR_IS_BELOW:g} (they run from {least:g} to {greatest:g})."
        )
    return VolumeFacts(
        shape=shape,
        spacing=(x, y, z),
        orientation=orientation_of(place.affine),
        dtype=source.dtype.name,
        scaled=source.scaled,
        affine=tuple(tuple(float(value) for value in row) for row in place.affine),
        nifti_version=source.version,
        minimum=least,
        maximum=greatest,
        memory=memory,
        warnings=tuple(warnings),
    )


def _shape(source: NiftiReader) -> tuple[int, int, int]:
    shape = source.shape
    said = " x ".join(map(str, shape))
    if len(shape) < 3:
        raise UnsupportedNifti(f"It has {len(shape)} axes ({said}), not three.", _ONE_VOLUME)
    if any(length != 1 for length in shape[3:]):
        raise UnsupportedNifti(f"It holds more than one volume: {said}.", _ONE_VOLUME)
    if min(shape[:3]) < 2:
        raise UnsupportedNifti(
            f"An axis has fewer than two voxels: {said}.", "Send the whole volume, not one slice."
        )
    if max(shape) > _LONGEST_AXIS:
        raise UnsupportedNifti(f"An axis is longer than {_LONGEST_AXIS} voxels: {said}.")
    return shape[0], shape[1], shape[2]


def _check_size(source: NiftiReader, sent: int, limits: VolumeLimits) -> None:
    if source.size > limits.max_volume_bytes:
        raise TooLarge(
            f"According to its header it unpacks to {source.size:,} bytes; "
            f"this server accepts {limits.max_volume_bytes:,}."
        )
    if source.size > max(_SMALL_BYTES, _MOST_RATIO * sent):
        raise TooLarge(
            f"According to its header it unpacks to more than {_MOST_RATIO} times its own size, "
            f"as no CT does.",
            "Check that its voxels are not all the same.",
        )


def _check_grid(shape: tuple[int, int, int], affine: Affine, limits: VolumeLimits) -> None:
    grid = PLUGIN.network_grid(shape, affine)
    if prod(grid) > limits.max_grid_voxels:
        raise UnsupportedNifti(
            f"Resampled to 1.5 x 1.5 x 2 mm, as the plugin does, it would have "
            f"{' x '.join(map(str, grid))} voxels; this server accepts "
            f"{limits.max_grid_voxels:,} in total.",
            _SMALLER_GRID,
        )


def _write_copy(upload: Path, place: Place, target: Path) -> tuple[float, float, int]:
    with (
        NiftiReader(upload) as source,
        writing_atomically(target) as part,
        GzipWriter(part) as copy,
    ):
        header = (place.corrected or source.stored).copy()
        if len(source.shape) > 3:
            header.set_data_shape(source.shape[:3])
        header["vox_offset"] = header.sizeof_hdr + len(place.note)
        copy.write(header.binaryblock + place.note)
        return _read_voxels(source, copy)


def _read_voxels(source: NiftiReader, copy: GzipWriter | None = None) -> tuple[float, float, int]:
    """Check and copy every voxel; return the least, the greatest and the bytes after the last."""
    least, greatest = inf, -inf
    for values in source.values(prod(source.shape)):
        low, high = values.min(), values.max()  # one NaN makes both NaN
        if not (isfinite(low) and isfinite(high)):
            raise UnsupportedNifti(
                "A voxel is not a finite number.",
                "Replace NaN and infinity, for example with -1024 (air), and send it again.",
            )
        least, greatest = min(least, low.item()), max(greatest, high.item())
        if copy:
            copy.write(values)
    tail = source.tail()
    if tail > TAIL:
        raise TooLarge(
            "It continues for more than a mebibyte after the last voxel that its header announces.",
            "Recreate the file from its source: its header and its voxels do not match.",
        )
    steps = [end * source.slope for end in (least, greatest)]
    ends = sorted(step + source.intercept for step in steps)
    if max(map(abs, (source.slope, source.intercept, *steps, *ends))) > _FLOAT32_MAX:
        raise UnsupportedNifti("A voxel is too large for single precision, which the plugin uses.")
    return ends[0], ends[1], tail
