"""Compiled loops over voxels, for the adaptations.

Part of the program `warm_parent.py`: imports nothing of pfms. The first import compiles the loops,
which takes seconds; numba keeps the result in a `__pycache__`, as Python does. They release the
GIL, so that `in_slabs` can use all cores of a run.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import from_dtype, njit, types
from numba.extending import intrinsic

Array = Any  # numpy's; numba knows the dtypes

_SLABS_PER_THREAD = 8  # so that no thread waits long for the last one


def in_slabs(
    count: int,
    threads: int,
    work: Callable[[int, int], object],
    least: int = 1,
    tell: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Call `work(first, after)` for parts of `range(count)`, in threads.

    Args:
        count: Of slices.
        threads: How many work at a time.
        work: Works on the slices from `first`, up to but not including `after`.
        least: Slices in a part, and the multiple at which each starts.
        tell: Called with the slices that are done, and with `count`.
    """
    size = -(-count // (threads * _SLABS_PER_THREAD * least)) * least
    with ThreadPoolExecutor(threads) as pool:
        parts = {
            pool.submit(work, first, min(count, first + size)): min(count, first + size)
            for first in range(0, count, size)
        }
        for part, after in parts.items():
            part.result()
            tell(after, count)


def _compiled(signatures: Any, **options: Any) -> Callable[[Any], Any]:
    """Compile a function for these types of its arguments."""

    def compile_it(function: Callable[..., None]) -> Any:
        try:
            return njit(signatures, nogil=True, cache=True, **options)(function)
        except RuntimeError:  # there is no folder in which it may keep the result
            return njit(signatures, nogil=True, **options)(function)

    return compile_it


# --- sampling ------------------------------------------------------------------------------------
# As torch's `grid_sampler` on a CPU (bilinear, padding "border", align_corners=False, float64): the
# products and sums are rounded in its order, from its 0.0 on. The axes of a volume are called
# (z, y, x) here, as in torch: x is the last one.

_Volume = types.Array(types.float64, 4, "C", readonly=True)
_Scores = types.float32[:, :, :, ::1]
_Indices = types.int64[::1]
_Weights = types.float64[::1]


@_compiled(
    types.void(_Volume, *(_Indices, _Weights, _Weights) * 3, _Scores, types.int64, types.int64),
    error_model="numpy",
)
def sample_aligned(
    volume: Array,
    x0s: Array,
    near_xs: Array,
    far_xs: Array,
    y0s: Array,
    near_ys: Array,
    far_ys: Array,
    z0s: Array,
    near_zs: Array,
    far_zs: Array,
    out: Array,
    first: int,
    after: int,
) -> None:
    """Sample where the axes of both grids are parallel: one table for each axis, of three columns.

    Args:
        volume: Of the shape (channels, z, y, x).
        x0s: For each x of the output, the voxel before it.
        near_xs: The weight of that voxel.
        far_xs: The weight of the next.
        y0s: Likewise for each y.
        near_ys: Likewise.
        far_ys: Likewise.
        z0s: Likewise for each z.
        near_zs: Likewise.
        far_zs: Likewise.
        out: Of the shape (channels, z, y, x).
        first: The first z of the output to fill.
        after: The z after the last one to fill.
    """
    channels, depth, height, width = volume.shape
    for i in range(first, after):
        z0 = z0s[i]
        z1 = min(z0 + 1, depth - 1)
        near_z, far_z = near_zs[i], far_zs[i]
        has_z1 = z0 + 1 < depth
        for j in range(y0s.size):
            y0 = y0s[j]
            y1 = min(y0 + 1, height - 1)
            near_y, far_y = near_ys[j], far_ys[j]
            has_y1 = y0 + 1 < height
            for channel in range(channels):
                row00, row01 = volume[channel, z0, y0], volume[channel, z0, y1]
                row10, row11 = volume[channel, z1, y0], volume[channel, z1, y1]
                row = out[channel, i, j]
                for k in range(x0s.size):
                    x0 = x0s[k]
                    x1 = x0 + 1
                    near_x, far_x = near_xs[k], far_xs[k]
                    has_x1 = x1 < width
                    value = 0.0 + row00[x0] * (near_x * near_y * near_z)
                    if has_x1:
                        value += row00[x1] * (far_x * near_y * near_z)
                    if has_y1:
                        value += row01[x0] * (near_x * far_y * near_z)
                        if has_x1:
                            value += row01[x1] * (far_x * far_y * near_z)
                    if has_z1:
                        value += row10[x0] * (near_x * near_y * far_z)
                        if has_x1:
                            value += row10[x1] * (far_x * near_y * far_z)
                        if has_y1:
                            value += row11[x0] * (near_x * far_y * far_z)
                            if has_x1:
                                value += row11[x1] * (far_x * far_y * far_z)
                    row[k] = value


@intrinsic  # type: ignore[untyped-decorator]
def _fused(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """`a * b + c`, rounded once."""

    def build(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), build


@njit(inline="always", error_model="numpy")  # type: ignore[untyped-decorator]
def _place(x: float, y: float, z: float, row: Array, size: int) -> float:
    """Where a point is along one axis of the volume, in voxels, within the volume."""
    at = _fused(z, row[2], _fused(y, row[1], x * row[0])) + row[3]
    inside: float = min(size - 1.0, max(((at + 1.0) * size - 1.0) / 2.0, 0.0))
    return inside


@_compiled(
    types.void(_Volume, types.float64[:, ::1], *(_Weights,) * 3, _Scores, types.int64, types.int64),
    error_model="numpy",
)
def sample_oblique(
    volume: Array,
    theta: Array,
    xs: Array,
    ys: Array,
    zs: Array,
    out: Array,
    first: int,
    after: int,
) -> None:
    """Sample under any affine.

    Args:
        volume: Of the shape (channels, z, y, x).
        theta: The affine of `torch.nn.functional.affine_grid`, of the shape (3, 4).
        xs: The coordinates of the output's voxels along x, between -1 and 1.
        ys: Along y.
        zs: Along z.
        out: Of the shape (channels, z, y, x).
        first: The first z of the output to fill.
        after: The z after the last one to fill.
    """
    channels, depth, height, width = volume.shape
    for i in range(first, after):
        for j in range(ys.size):
            for k in range(xs.size):
                x = _place(xs[k], ys[j], zs[i], theta[0], width)
                y = _place(xs[k], ys[j], zs[i], theta[1], height)
                z = _place(xs[k], ys[j], zs[i], theta[2], depth)
                x0, y0, z0 = int(x), int(y), int(z)
                x1, y1, z1 = x0 + 1, y0 + 1, z0 + 1
                has_x1, has_y1, has_z1 = x1 < width, y1 < height, z1 < depth
                near_near, far_near = (x1 - x) * (y1 - y), (x - x0) * (y1 - y)
                near_far, far_far = (x1 - x) * (y - y0), (x - x0) * (y - y0)
                near_z, far_z = z1 - z, z - z0
                for channel in range(channels):
                    value = 0.0 + volume[channel, z0, y0, x0] * (near_near * near_z)
                    if has_x1:
                        value += volume[channel, z0, y0, x1] * (far_near * near_z)
                    if has_y1:
                        value += volume[channel, z0, y1, x0] * (near_far * near_z)
                        if has_x1:
                            value += volume[channel, z0, y1, x1] * (far_far * near_z)
                    if has_z1:
                        value += volume[channel, z1, y0, x0] * (near_near * far_z)
                        if has_x1:
                            value += volume[channel, z1, y0, x1] * (far_near * far_z)
                        if has_y1:
                            value += volume[channel, z1, y1, x0] * (near_far * far_z)
                            if has_x1:
                                value += volume[channel, z1, y1, x1] * (far_far * far_z)
                    out[channel, i, j, k] = value


# --- the order in memory --------------------------------------------------------------------------

TILE = 32  # voxels along each side of a tile, so that its rows and its columns stay in the cache


@_compiled(
    types.void(
        types.Array(types.float32, 4, "C", readonly=True), _Scores, types.int64, types.int64
    ),
)
def one_hot_of_largest(scores: Array, out: Array, first: int, after: int) -> None:
    """What `one_hot(argmax(scores))` has: 1 in the channel with the largest score, elsewhere 0.

    As with `torch.argmax`, the first of equal scores counts, and NaN is larger than any number.

    Args:
        scores: Of the shape (channels, x, y, z).
        out: Of the shape (channels, z, y, x).
        first: The first z to fill, a multiple of `TILE`.
        after: The z after the last one to fill.
    """
    channels, width, height, _ = scores.shape
    best = np.empty((TILE, TILE), np.uint8)
    largest = np.empty(TILE, np.float32)
    for z_tile in range(first, after, TILE):
        z_end = min(after, z_tile + TILE)
        for y in range(height):
            for x_tile in range(0, width, TILE):
                x_end = min(width, x_tile + TILE)
                for x in range(x_end - x_tile):
                    column = best[x]
                    row = scores[0, x_tile + x, y, z_tile:z_end]
                    for z in range(row.size):
                        largest[z] = row[z]
                        column[z] = 0
                    for channel in range(1, channels):
                        row = scores[channel, x_tile + x, y, z_tile:z_end]
                        for z in range(row.size):
                            score, so_far = row[z], largest[z]
                            wins = (score > so_far) | ((score != score) & (so_far == so_far))
                            largest[z] = score if wins else so_far
                            column[z] = channel if wins else column[z]
                for channel in range(channels):
                    for z in range(z_end - z_tile):
                        row = out[channel, z_tile + z, y, x_tile:x_end]
                        for x in range(row.size):
                            row[x] = best[x, z] == channel


def _as_float32(source: Array, out: Array, first: int, after: int) -> None:
    """Copy an array as float32 into one with the axes in reverse order.

    Args:
        source: Of the shape (z, y, x).
        out: Of the shape (x, y, z).
        first: The first x to copy, a multiple of `TILE`.
        after: The x after the last one to copy.
    """
    depth, height, _ = source.shape
    for x_tile in range(first, after, TILE):
        x_end = min(after, x_tile + TILE)
        for y in range(height):
            for z_tile in range(0, depth, TILE):
                z_end = min(depth, z_tile + TILE)
                for x in range(x_tile, x_end):
                    row = out[x, y, z_tile:z_end]
                    for z in range(row.size):
                        row[z] = source[z_tile + z, y, x]


# The types that CTs have, from a scanner or after scaling.
FLOAT32_FROM = (np.int16, np.uint16, np.float32, np.float64)

as_float32 = _compiled(
    [
        types.void(
            types.Array(from_dtype(np.dtype(item)), 3, "C", readonly=True),
            types.float32[:, :, ::1],
            *(types.int64,) * 2,
        )
        for item in FLOAT32_FROM
    ],
)(_as_float32)
