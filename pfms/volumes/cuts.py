"""Reads single slices out of a volume, in one pass, holding nothing else of it."""

from collections.abc import Collection
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfms.volumes.reader import NiftiReader

Cut = tuple[int, int]
"""A slice: its normal, a stored axis (0 to 2), and its index along that axis."""


def read_cuts(
    source: NiftiReader, wanted: Collection[Cut], longest: int
) -> dict[Cut, NDArray[Any]]:
    """Read slices of stored, unscaled values.

    Args:
        source: No voxel of it has been read.
        wanted: Which slices.
        longest: Voxels along a side; a longer side is thinned out.

    Returns:
        For each slice an array whose columns run along the lower of the other two stored axes:
        [k, j] for a slice at i, [k, i] at j, [j, i] at k.
    """
    nx, ny, nz = source.shape[:3]
    si, sj, sk = (ceil(length / longest) for length in (nx, ny, nz))
    at = [sorted({index for normal, index in wanted if normal == axis}) for axis in range(3)]
    sides = ((nz, sk, ny, sj), (nz, sk, nx, si), (ny, sj, nx, si))
    cuts = [
        np.zeros((len(indices), ceil(a / s), ceil(b / t)), source.dtype)
        for indices, (a, s, b, t) in zip(at, sides, strict=True)
    ]
    place_j, place_k = _places(at[1], ny), _places(at[2], nz)
    row = 0
    for values in source.values(prod((nx, ny, nz)), row=nx):
        block = values.reshape(-1, nx)
        k, j = np.divmod(np.arange(row, row + len(block)), ny)
        row += len(block)
        if at[0]:
            on = (j % sj == 0) & (k % sk == 0)
            cuts[0][:, k[on] // sk, j[on] // sj] = block[on][:, at[0]].T
        on = (place_j[j] >= 0) & (k % sk == 0)
        cuts[1][place_j[j[on]], k[on] // sk] = block[on, ::si]
        on = (place_k[k] >= 0) & (j % sj == 0)
        cuts[2][place_k[k[on]], j[on] // sj] = block[on, ::si]
    return {
        (axis, index): cut
        for axis in range(3)
        for index, cut in zip(at[axis], cuts[axis], strict=True)
    }


def _places(indices: list[int], length: int) -> NDArray[np.int64]:
    """Give for each index its place in the list, or -1."""
    places = np.full(length, -1, np.int64)
    places[indices] = np.arange(len(indices))
    return places
