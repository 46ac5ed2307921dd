"""The volumes that are sent, as bytes of `.nii.gz`."""

import gzip
import io

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bench.figures import Skipped
from examples.phantoms import Phantom, make_phantom
from tests.conftest import SHARED_DATA

_CT = SHARED_DATA / "ct_abdomen_3mm.nii.gz"
_ORGANS = SHARED_DATA / "ct_abdomen_3mm_organs.nii.gz"
_SPLEEN = 1  # among the organs
_SKIN_HU = -200  # everything of a body is above it
_NOISE_HU = 4.0  # standard deviation
_PLANE, _PLANE_MM = 512, 0.8  # voxels along each side of a slice, and their spacing


def there_is_a_real_ct() -> bool:
    """Whether `../shared/data` is there."""
    return _CT.exists() and _ORGANS.exists()


def real_ct() -> Phantom:
    """A real CT, with its spleen as others have segmented it.

    Raises:
        Skipped: There is none here.
    """
    if not there_is_a_real_ct():
        raise Skipped("there is no real CT here")
    organs = nib.load(_ORGANS)
    spleen = (np.asanyarray(organs.dataobj) == _SPLEEN).astype(np.uint8)
    return Phantom(nib.load(_CT), nib.Nifti1Image(spleen, organs.affine))


def phantom_3mm() -> Phantom:
    """A trunk at 3 mm."""
    return make_phantom(7, spacing=(3.0, 3.0, 3.0))


def clinical(slices: int = 100) -> Phantom:
    """A phantom as large as a clinical scan: 512 x 512 voxels a slice, of 0.8 x 0.8 mm."""
    return make_phantom(7, (_PLANE, _PLANE, slices), (_PLANE_MM, _PLANE_MM, _thickness(slices)))


def body(slices: int = 100) -> bytes:
    """A body that fills the field of view of a clinical scan, of the real CT's voxels.

    A slice is the CT's slice without the air around the body, stretched by repetition of voxels.
    Upwards, its slices are repeated to and fro, each at its own thickness, with other noise each
    time. It is made slice by slice, so the maker needs little more memory than the packed volume.

    Args:
        slices: How many; as for `clinical`, they decide the thickness.

    Raises:
        Skipped: There is no real CT here.
    """
    if not there_is_a_real_ct():
        raise Skipped("there is no real CT here")
    image = nib.load(_CT)
    ct = np.asanyarray(image.dataobj)
    flesh = ct > _SKIN_HU
    x, y = (_stretched(flesh.any(axis=others)) for others in ((1, 2), (0, 2)))
    thick = _thickness(slices)
    header = nib.Nifti1Image(np.empty((2, 2, 2), np.int16), image.affine).header
    header.set_data_shape((_PLANE, _PLANE, slices))
    header.set_xyzt_units("mm")
    affine = np.diag([_PLANE_MM, _PLANE_MM, thick, 1.0])
    affine[:3, 3] = image.affine[:3, 3]
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header["vox_offset"] = header.single_vox_offset
    noise = np.random.default_rng(7)
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 1, packed, 0) as file:
        file.write(header.binaryblock + bytes(4))
        for k in range(slices):
            turn = int(k * thick / image.header.get_zooms()[2]) % (2 * ct.shape[2])
            source = ct[..., min(turn, 2 * ct.shape[2] - 1 - turn)][np.ix_(x, y)]
            grain = noise.standard_normal(source.shape, np.float32) * np.float32(_NOISE_HU)
            file.write(np.rint(source + grain).astype(np.int16).tobytes(order="F"))
    return packed.getvalue()


def content(image: nib.Nifti1Image) -> bytes:
    """The bytes of its `.nii.gz`."""
    return gzip.compress(image.to_bytes(), 1, mtime=0)


def _thickness(slices: int) -> float:
    """Of a clinical scan's slices, mm: thin if there are many."""
    return 3.0 if slices <= 100 else 1.0


def _stretched(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each voxel along a side of a slice, the index of the CT's voxel that it repeats."""
    low, high = np.flatnonzero(inside)[[0, -1]]
    voxels: NDArray[np.int64] = low + np.arange(_PLANE) * (high + 1 - low) // _PLANE
    return voxels
