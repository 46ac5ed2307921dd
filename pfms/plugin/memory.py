"""How much memory a run of spleenseg holds at its peak, from what a volume's header says.

A run has three phases, and the largest decides. What each holds beside the libraries was read from
the code of the plugin and MONAI, and fitted to measured peaks (`python -m bench memory` shows how
well it fits, and has to be run again when a phase changes). The crop to the patient's body is not
known beforehand: the field of view is taken to be full.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

_MIB = 2**20

_LIBRARIES = 450 * _MIB  # Python, torch, MONAI and the plugin; a forked run shares most of it

# The network sees four windows of 160 x 160 x 160 voxels at a time, which overlap by a quarter.
# Its activations are the same for all volumes that fill four. A GPU holds them itself, but CUDA
# takes as much on the host.
_WINDOW, _STEP = 160, 120
_WINDOWS_AT_A_TIME = 4
_OF_THE_NETWORK = 600 * _MIB
_OF_A_WINDOW = 330 * _MIB
_NETWORK_PER_GRID_VOXEL = 24  # the volume, two scores, their sum and their count of windows


@dataclass(frozen=True)
class _PerVoxel:
    """Bytes for each voxel of the volume, with and without the adaptations.

    Attributes:
        loading: While it is read, turned to RAS and resampled, beside the stored array.
        saving: While the scores are brought back to its grid, become one-hot and are written.
    """

    loading: int
    saving: int


_ADAPTED = _PerVoxel(loading=27, saving=24)
_PLAIN = _PerVoxel(loading=27, saving=74)
_SCALED = 4  # more, while a scaled volume is read, which is as float64


def memory_needed(
    shape: tuple[int, int, int],
    grid: tuple[int, int, int],
    dtype: str,
    *,
    scaled: bool,
    adapted: bool,
) -> int:
    """Estimate the most bytes that a run will hold.

    Args:
        shape: Voxels of the volume along its axes.
        grid: Voxels of the grid on which the network sees it.
        dtype: The stored type, such as `int16`.
        scaled: Whether a voxel differs from its stored value.
        adapted: Whether the run has every adaptation.
    """
    voxels, seen = prod(shape), prod(grid)
    per_voxel = _ADAPTED if adapted else _PLAIN
    stored = np.dtype(dtype).itemsize + (_SCALED if scaled else 0)
    windows = prod(1 + max(0, -(-(length - _WINDOW) // _STEP)) for length in grid)
    network = _OF_THE_NETWORK + _OF_A_WINDOW * min(windows, _WINDOWS_AT_A_TIME)
    return _LIBRARIES + max(
        voxels * (stored + per_voxel.loading),
        network + seen * _NETWORK_PER_GRID_VOXEL,
        voxels * per_voxel.saving,
    )
