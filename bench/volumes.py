"""The volumes that are sent, as bytes of `.nii.gz`."""

import gzip

import nibabel as nib
import numpy as np

from bench.figures import Skipped
from examples.phantoms import Phantom, make_phantom
from tests.conftest import SHARED_DATA

_CT = SHARED_DATA / "ct_abdomen_3mm.nii.gz"
_ORGANS = SHARED_DATA / "ct_abdomen_3mm_organs.nii.gz"
_SPLEEN = 1  # among the organs


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


def clinical() -> Phantom:
    """A phantom as large as a clinical scan."""
    return make_phantom(7, (512, 512, 100), (0.8, 0.8, 3.0))


def content(image: nib.Nifti1Image) -> bytes:
    """The bytes of its `.nii.gz`."""
    return gzip.compress(image.to_bytes(), 1, mtime=0)
