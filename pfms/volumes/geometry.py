"""Where a volume lies in the patient, as nibabel and the plugin's loader read its header.

All affines are 4 x 4, from voxel indices (i, j, k) to millimetres in RAS.
"""

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import HeaderDataError

from pfms.errors import UnsupportedNifti
from pfms.plugin import PLUGIN
from pfms.plugin.types import Floats

Affine = Floats

SAME = 1e-3
"""Millimetres, per element, within which two affines are the same."""

_SPACING_RANGE = (0.01, 10_000.0)
_FARTHEST = 1e6
_LEAST_VOLUME = 0.01  # of the parallelepiped that the unit vectors along the axes span
_UNITS = (
    "Give spacing and position in millimetres: "
    "a header in metres or micrometres is the usual cause."
)


def header_affine(header: Nifti1Header) -> Affine:
    """Return nibabel's affine: the sform if it has a code, otherwise the qform or a guess.

    Raises:
        UnsupportedNifti: It is singular, not finite, or nowhere near the size of a patient.
    """
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise UnsupportedNifti("Its qform is not a rotation.") from error
    _check(affine)
    return affine


def loaded_affine(header: Nifti1Header) -> Affine:
    """Return the affine that the plugin works with: nearly always that of `header_affine`.

    If its reader does not believe the sform, it uses the qform instead, whatever the qform's code.

    Raises:
        UnsupportedNifti: As for `header_affine`, about either of them.
    """
    affine = header_affine(header)
    pixdim = header["pixdim"][1:4].astype(np.float64)
    if header["sform_code"] == 0 or PLUGIN.uses_sform(pixdim, spacing_of(affine)):
        return affine
    try:
        with np.errstate(all="ignore"):
            qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise UnsupportedNifti("Its qform is not a rotation.") from error
    if not PLUGIN.uses_sform(pixdim, spacing_of(qform)):
        return affine
    _check(qform)
    return qform


def same(one: Affine, other: Affine) -> bool:
    """Whether two affines agree within `SAME`, or within what a 32-bit header can hold."""
    return bool(np.allclose(one, other, rtol=1e-6, atol=SAME))


def spacing_of(affine: Affine) -> Floats:
    """Return the distance between neighbouring voxels along the three stored axes, millimetres."""
    with np.errstate(all="ignore"):
        lengths: Floats = np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0))
    return lengths


def voxel_millilitres(affine: Affine) -> float:
    """Return the volume of one voxel."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000.0


def orientation_of(affine: Affine) -> str:
    """Name the direction in which each stored axis mostly runs, such as `RAS` or `LPS`."""
    return "".join(aff2axcodes(affine))


def _check(affine: Affine) -> None:
    if not np.isfinite(affine).all():
        raise UnsupportedNifti("Its affine is not finite.")
    with np.errstate(all="ignore"):
        spacing = spacing_of(affine)
        smallest, largest = _SPACING_RANGE
        if not (smallest <= spacing.min() and spacing.max() <= largest):
            text = " x ".join(f"{length:g}" for length in spacing)
            raise UnsupportedNifti(f"Its voxels measure {text} mm.", _UNITS)
        if abs(np.linalg.det(affine[:3, :3] / spacing)) < _LEAST_VOLUME:
            raise UnsupportedNifti("Its affine is singular: two of its axes run the same way.")
    if np.abs(affine[:3, 3]).max() > _FARTHEST:
        raise UnsupportedNifti("Its origin lies more than a kilometre away.", _UNITS)
