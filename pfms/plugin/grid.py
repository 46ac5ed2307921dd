"""The grid on which the network sees a volume, as MONAI's transforms compute it."""

import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from pfms.plugin.types import Floats

_SAME = 1e-3  # mm; a spacing this close to the wanted one is kept


def resampled_shape(
    shape: tuple[int, int, int], affine: Floats, spacing: tuple[float, float, float]
) -> tuple[int, int, int]:
    """The shape (R, A, S) of a volume turned to RAS and resampled to `spacing`, in mm.

    This does what Orientationd("RAS") and Spacingd of MONAI 1.6.1 do. `zoom_affine` and
    `compute_shape_offset` (monai.data.utils) are written out here, since this process has no torch.
    """
    turn = ornt_transform(io_orientation(affine), axcodes2ornt("RAS"))
    matrix = (affine @ inv_ornt_aff(turn, shape))[:3, :3]
    turned = [shape[axis] for axis in np.argsort(turn[:, 0])]

    given = np.sqrt(np.sum(matrix * matrix, axis=0))
    wanted = np.array(spacing)
    wanted = np.where(np.abs(given - wanted) <= _SAME, given, wanted)
    upper = np.linalg.cholesky(matrix.T @ matrix).T
    rotation = matrix @ _inverse(upper)  # without zoom and shear
    resampled = rotation @ np.diag(np.sign(np.diag(upper)) * wanted)

    ends = [(0.0, length - 1.0) for length in turned]
    corners = np.asarray(np.meshgrid(*ends, indexing="ij")).reshape((3, -1))
    extent = np.ptp(_inverse(resampled) @ matrix @ corners, axis=1)
    x, y, z = (int(length) for length in np.round(extent + 1.0))
    return x, y, z


def _inverse(matrix: Floats) -> Floats:
    """Invert a 3 x 3 matrix.

    numpy's `inv` wakes an OpenBLAS thread for each core; afterwards they spin for 20 ms, on cores
    that the runs need.
    """
    a, b, c = matrix
    adjugate = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
    inverse: Floats = adjugate / (a @ adjugate[:, 0])
    return inverse
