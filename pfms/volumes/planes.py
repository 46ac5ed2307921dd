"""The planes of the body: which slices of a volume lie in them, and how they are shown. Pure.

Slices are numbered as in nibabel's closest canonical orientation (RAS+), from 0: axial ones from
inferior to superior, coronal ones from posterior to anterior, sagittal ones from the patient's left
to the right. For an oblique volume they are the stored slices nearest to the plane.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from nibabel.orientations import io_orientation

from pfms.errors import InvalidParameter
from pfms.volumes.geometry import Affine

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
MOST_SLICES = 36
"""Of a mosaic: those of 512 x 512 voxels are then held at a time."""

_AXES = {"axial": "IS", "coronal": "PA", "sagittal": "LR"}  # letters of an orientation
_ENDS = ("LR", "PA", "IS")  # of the axes of RAS
_OBLIQUE = 0.35  # of a direction, from which it is worth a second letter: 20 degrees

# The axes of RAS: what is normal to a plane, and against which axes a picture runs to the right and
# downwards. So the patient's right is on the viewer's left; anterior and superior are up.
_SHOWN = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}


@dataclass(frozen=True)
class Wanted:
    """What a picture is to show.

    Attributes:
        plane: One plane; None for all three in one picture, or for a mosaic of axial slices.
        slice: Its number, as above; None for the one through the spleen.
        mosaic: How many slices through the spleen; None for no mosaic.
    """

    plane: Plane | None = None
    slice: int | None = None
    mosaic: int | None = None

    def check(self, shape: tuple[int, int, int], orientation: str) -> None:
        """Check that a volume has what is wanted.

        Args:
            shape: Voxels along the stored axes (x, y, z).
            orientation: Where each of them runs, such as `LPS`.

        Raises:
            InvalidParameter: It has not, or the wishes contradict each other.
        """
        if self.slice is None:
            return
        if self.mosaic is not None:
            raise InvalidParameter(
                "A mosaic has several slices, so that no single one can be chosen.",
                "Leave out either `slice` or `mosaic`.",
            )
        if self.plane is None:
            raise InvalidParameter(
                "A slice was asked for without its plane.",
                f"Add `plane`: {', '.join(PLANES)}.",
            )
        axis = next(at for at, letter in enumerate(orientation) if letter in _AXES[self.plane])
        if not 0 <= self.slice < shape[axis]:
            raise InvalidParameter(
                f"The volume has no {self.plane} slice {self.slice}.",
                f"Its {self.plane} slices are numbered from 0 to {shape[axis] - 1}.",
            )


@dataclass(frozen=True)
class View:
    """How the stored slices of a volume that lie in a plane are shown.

    Attributes:
        plane: The plane.
        normal: The stored axis that is normal to it.
        across: The stored axis along which a picture runs to the right.
        down: The stored axis along which it runs downwards.
        flipped: Whether the numbers of slices, and these two axes, run against the stored indices.
        letters: What lies at the left, right, top and bottom: R, L, A, P, S, I; two of them, the
            nearer one first, where the volume is oblique.
    """

    plane: Plane
    normal: int
    across: int
    down: int
    flipped: tuple[bool, bool, bool]
    letters: tuple[str, str, str, str]

    def number(self, index: int, length: int) -> int:
        """Return the number of a slice by its stored index, or the other way round."""
        return length - 1 - index if self.flipped[0] else index


def view_of(plane: Plane, affine: Affine) -> View:
    """Return how a plane of a volume is shown."""
    axes, signs = io_orientation(affine).astype(int).T
    normal, across, down = (int(np.flatnonzero(axes == axis)[0]) for axis in _SHOWN[plane])
    ends = []
    for stored in (across, down):
        direction = affine[:3, stored] / np.linalg.norm(affine[:3, stored])
        ends += [_letters(direction * signs[stored]), _letters(-direction * signs[stored])]
    left, right, top, bottom = ends
    flipped = bool(signs[normal] < 0), bool(signs[across] > 0), bool(signs[down] > 0)
    return View(plane, normal, across, down, flipped, (left, right, top, bottom))


def _letters(direction: Affine) -> str:
    """Name a direction in RAS by the letters of its one or two largest parts."""
    order = np.argsort(-np.abs(direction), kind="stable")[:2]
    letters = [_ENDS[axis][int(direction[axis] > 0)] for axis in order]
    return "".join(letters if abs(direction[order[1]]) > _OBLIQUE else letters[:1])
