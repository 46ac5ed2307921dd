"""A CT series as a volume: how its images lie on each other, and the NIfTI file that is sent.

Voxels and their place leave this machine, and nothing else. Needs the extra `dicom`.
"""

import gzip
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.spatial import create_affine_matrix_from_attributes
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from pydicom.pixels.utils import iter_pixels

from pfms.local.dicom_planes import Plane, planes_of
from pfms.local.dicom_series import CannotConvert, Series

Floats = NDArray[np.float64]

_SAME = 1e-3  # of direction cosines, and mm of the distance between pixels
_SAME_PLACE = 0.01  # mm between slices
_ASTRAY = 0.1  # of the distance between slices: how far one may be from where it should be
_SIDEWAYS = 0.5  # of a pixel: how far slices may be shifted against each other
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_APART = "Put the images of each volume into a folder of their own."
_RESAMPLE = "Convert it to NIfTI with dcm2niix, which resamples it, and send that."


@dataclass(frozen=True)
class Stack:
    """The images of a series in the order in which they lie on each other.

    Attributes:
        planes: At least two, at equal distances.
        affine: 4 x 4, from indices (column, row, image) to mm in RAS.
    """

    planes: tuple[Plane, ...]
    affine: Floats

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, images."""
        rows, columns = self.planes[0].size
        return columns, rows, len(self.planes)

    def nifti(self) -> bytes:
        """A gzipped NIfTI in Hounsfield units, without any text, and the same bytes each time.

        Raises:
            CannotConvert: An image is damaged.
        """
        image = Nifti1Image(self._voxels(), self.affine)
        image.set_sform(self.affine, 1)
        image.set_qform(self.affine, 1)
        image.header.set_xyzt_units("mm")
        content = io.BytesIO()
        with gzip.GzipFile("", "wb", 1, content, mtime=0) as file:
            image.to_stream(file)
        return content.getvalue()

    def _voxels(self) -> NDArray[Any]:
        """Hounsfield units [column, row, image]: int16 if they are whole and fit, else float32."""
        voxels = np.empty(self.shape, self._dtype(), order="F")
        # Some images have values that their headers rule out.
        limits = np.iinfo(np.int16) if voxels.dtype == np.int16 else np.finfo(np.float32)
        files: dict[Path, list[int]] = {}
        for n, plane in enumerate(self.planes):
            files.setdefault(plane.file, []).append(n)
        for file, numbers in files.items():
            for n, pixels in zip(numbers, self._pixels(file, numbers), strict=True):
                plane = self.planes[n]
                hu = pixels * np.float64(plane.slope) + plane.intercept
                voxels[:, :, n] = hu.clip(limits.min, limits.max).T
        return voxels

    def _dtype(self) -> type[np.int16] | type[np.float32]:
        limits = np.iinfo(np.int16)
        for plane in self.planes:
            ends = [value * plane.slope + plane.intercept for value in plane.stored]
            whole = plane.slope.is_integer() and plane.intercept.is_integer()
            if not whole or min(ends) < limits.min or max(ends) > limits.max:
                return np.float32
        return np.int16

    def _pixels(self, file: Path, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
        """The stored values [row, column] of images that are in a file."""
        try:
            yield from iter_pixels(file, indices=[self.planes[n].frame for n in numbers])
        except Exception as error:  # whatever the damage makes of pydicom and its decoders
            detail = f"the pixels of {file} cannot be read: {error}"
            raise CannotConvert(detail, "Copy or export this file again.") from error


def stack_of(series: Series) -> Stack:
    """Find out how the images of a series lie on each other.

    Raises:
        CannotConvert: They are no regular stack, or no CT in Hounsfield units.
    """
    planes = [plane for file in series.files for plane in planes_of(file)]
    if len(planes) < 2:
        detail = "it has one slice only, and a volume has several"
        raise CannotConvert(detail, "Name the folder that has all its slices.")
    _check_alike(planes)
    first = planes[0]
    normal = np.cross(first.axes[:3], first.axes[3:])
    depths = np.array([plane.position for plane in planes]) @ normal
    order = np.argsort(depths, kind="stable")
    planes, depths = [planes[n] for n in order], depths[order]
    _check_distances(depths)
    _check_straight(planes, normal)
    stored: Floats = create_affine_matrix_from_attributes(
        image_position=planes[0].position,
        image_orientation=first.axes,
        pixel_spacing=first.spacing,
        spacing_between_slices=float((depths[-1] - depths[0]) / (len(depths) - 1)),
    )
    return Stack(tuple(planes), _LPS_TO_RAS @ stored)


def _check_alike(planes: Sequence[Plane]) -> None:
    """Check that all images have one size, spacing and direction."""
    first = planes[0]
    if len({plane.size for plane in planes}) > 1:
        raise CannotConvert("its slices differ in size", _APART)
    if len({plane.space for plane in planes}) > 1:
        raise CannotConvert("its slices are in different frames of reference", _APART)
    for plane in planes:
        if not np.allclose(plane.axes, first.axes, rtol=0, atol=_SAME):
            raise CannotConvert("its slices lie in different directions", _APART)
        if not np.allclose(plane.spacing, first.spacing, rtol=0, atol=_SAME):
            raise CannotConvert("its slices differ in the distance between pixels", _APART)
    axes = np.reshape(first.axes, (2, 3))
    if not np.allclose(axes @ axes.T, np.eye(2), rtol=0, atol=_SAME):
        detail = "the axes of its slices are not at right angles"
        raise CannotConvert(detail, "Export the series again: its headers are damaged.")


def _check_distances(depths: Floats) -> None:
    """Check that slices are at equal distances; `depths`: along their normal, mm, in order."""
    steps = np.diff(depths)
    same = int((steps < _SAME_PLACE).sum())
    if same:
        detail = f"{same} of its {len(depths)} slices lie where another one does"
        raise CannotConvert(f"{detail}: it has several volumes, such as phases", _APART)
    usual = float(np.median(steps))
    missing = int(np.rint(steps / usual - 1).clip(0).sum())
    if missing:
        after = int(steps.argmax())
        detail = f"about {missing} slices are missing: between two of them are"
        detail += f" {steps[after]:.2f} mm, and between others {usual:.2f} mm"
        raise CannotConvert(detail, "Copy or export the series again, with all slices.")
    regular = np.linspace(depths[0], depths[-1], len(depths))
    if np.abs(depths - regular).max() > _ASTRAY * usual:
        detail = "its slices are at unequal distances, between"
        detail += f" {steps.min():.2f} and {steps.max():.2f} mm"
        raise CannotConvert(detail, _RESAMPLE)


def _check_straight(planes: Sequence[Plane], normal: Floats) -> None:
    """Check that slices, in order, lie on each other at right angles."""
    way = np.array([plane.position for plane in planes]) - planes[0].position
    depths = way @ normal
    aside = np.linalg.norm(way - np.outer(depths, normal), axis=1)
    if aside.max() > _SIDEWAYS * min(planes[0].spacing):
        worst = int(aside.argmax())
        degrees = np.degrees(np.arctan2(aside[worst], depths[worst]))
        detail = f"its slices are shifted sideways, as by a gantry tilted by {degrees:.1f} degrees"
        raise CannotConvert(detail, _RESAMPLE)
