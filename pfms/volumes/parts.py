"""Finds the largest connected part of a label map, in one pass and without holding its voxels.

Runs of labelled voxels along x are kept, not voxels; the largest part is the one with the most
voxels of those that hang together by faces. Memory is bounded by the number of runs.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfms.volumes.reader import NiftiReader

# A spleen at 512 x 512 x 800 voxels has a tenth of it. What has more is noise: there is no largest
# part to look for, and all of it counts as one.
_MOST_RUNS = 500_000


@dataclass(frozen=True)
class LargestPart:
    """Where the largest part is, by stored indices (i, j, k); without any label, the middle.

    Attributes:
        labelled: How many voxels have a label, in all parts.
        middle: Near its centre; it has voxels in each of the three slices through this point.
        first: The least indices of its voxels.
        last: The greatest.
    """

    labelled: int
    middle: tuple[int, int, int]
    first: tuple[int, int, int]
    last: tuple[int, int, int]


@dataclass(frozen=True)
class _Runs:
    """Labelled voxels `start` to `end` (exclusive) of a row; sorted by row, then start."""

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "_Runs":
        return _Runs(self.row[chosen], self.start[chosen], self.end[chosen])


def largest_part(labels: NiftiReader) -> LargestPart:
    """Find the largest part; `labels` has three axes, and no voxel of it has been read."""
    nx, ny, nz = labels.shape[:3]
    found: list[_Runs] = []
    along = [np.zeros(length, np.int64) for length in (nx, ny, nz)]
    row = count = 0
    for values in labels.values(prod((nx, ny, nz)), row=nx):
        block = values.reshape(-1, nx) != 0
        if block.any():
            runs = _runs_of(block, row)
            count += len(runs.row)
            _add(along, runs)
            if count <= _MOST_RUNS:
                found.append(runs)
        row += len(block)
    labelled = int(along[0].sum())
    if not labelled:
        middle = nx // 2, ny // 2, nz // 2
        return LargestPart(0, middle, (0, 0, 0), (nx - 1, ny - 1, nz - 1))
    if count <= _MOST_RUNS:
        runs = _Runs(
            np.concatenate([each.row for each in found]),
            np.concatenate([each.start for each in found]),
            np.concatenate([each.end for each in found]),
        )
        along = [np.zeros(length, np.int64) for length in (nx, ny, nz)]
        _add(along, runs[_in_largest(runs, nx, ny)])
    ends = [(int(there[0]), int(there[-1])) for there in map(np.flatnonzero, along)]
    (i0, i1), (j0, j1), (k0, k1) = ends
    middle = _middle(along[0]), _middle(along[1]), _middle(along[2])
    return LargestPart(labelled, middle, (i0, j0, k0), (i1, j1, k1))


def _runs_of(block: NDArray[np.bool_], row: int) -> _Runs:
    """Give the runs of rows of voxels, of which the first has the number `row`."""
    rows = np.flatnonzero(block.any(axis=1))
    edges = np.diff(np.pad(block[rows], ((0, 0), (1, 1))).view(np.int8), axis=1)
    at, start = np.nonzero(edges == 1)
    return _Runs(rows[at] + row, start, np.nonzero(edges == -1)[1])


def _add(along: list[NDArray[np.int64]], runs: _Runs) -> None:
    """Add the voxels of runs to the number of voxels in each slice along x, y and z."""
    x, y, z = along
    ends = np.zeros(len(x) + 1, np.int64)
    np.add.at(ends, runs.start, 1)
    np.subtract.at(ends, runs.end, 1)
    x += np.cumsum(ends[:-1])
    k, j = np.divmod(runs.row, len(y))
    np.add.at(y, j, runs.end - runs.start)
    np.add.at(z, k, runs.end - runs.start)


def _in_largest(runs: _Runs, nx: int, ny: int) -> NDArray[np.bool_]:
    """Say which runs belong to the largest part."""
    part = np.arange(len(runs.row))  # the first run that is known to hang together with each
    one, other = _touching(runs, nx, ny)
    while (differ := part[one] != part[other]).any():
        one, other = one[differ], other[differ]
        a, b = part[one], part[other]
        np.minimum.at(part, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(further := part[part], part):
            part = further
    sizes: NDArray[Any] = np.bincount(part, weights=runs.end - runs.start)
    return np.asarray(part == np.argmax(sizes))


def _touching(runs: _Runs, nx: int, ny: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair each run with those it touches in the next row and in the next slice."""
    width = nx + 1  # more than any index within a row
    starts, ends = runs.row * width + runs.start, runs.row * width + runs.end
    every = np.arange(len(runs.row))
    not_the_last = every[(runs.row + 1) % ny != 0]  # the row after that is in the next slice
    pairs = []
    for step, ours in ((1, not_the_last), (ny, every)):
        begin = (runs.row[ours] + step) * width
        low = np.searchsorted(ends, begin + runs.start[ours], side="right")
        high = np.searchsorted(starts, begin + runs.end[ours], side="left")
        number = high - low
        offset = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        pairs.append((np.repeat(ours, number), np.repeat(low, number) + offset))
    (a, b), (c, d) = pairs
    return np.concatenate([a, c]), np.concatenate([b, d])


def _middle(numbers: NDArray[np.int64]) -> int:
    """Return the mean index, or the fullest one if there is nothing at the mean."""
    mean = round(float(np.average(np.arange(len(numbers)), weights=numbers)))
    return mean if numbers[mean] else int(np.argmax(numbers))
