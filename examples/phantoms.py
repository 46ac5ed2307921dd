#!/usr/bin/env python
"""CT-like phantoms of the upper abdomen, with the true spleen mask.

The anatomy is a list of implicit shapes in world coordinates: RAS, in mm, so x grows to the
patient's right and the spleen lies at negative x. A volume is that anatomy sampled at its voxel
centres through its affine. Any spacing, axis order, tilt or shear is therefore just another
affine over the same patient, and the spleen has the same volume in all of them.

Phantoms exercise software. They do not replace patients.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[np.float32]
Triple = tuple[float, float, float]

FIELD_MM: Triple = (320.0, 240.0, 240.0)
"""Extent, right to left, front to back and foot to head, of a volume whose shape is not given."""

SPREAD_MM = 2.5
"""Width of an edge: what a scanner's point spread leaves of a sharp one."""

AIR, LUNG, FAT = -1000.0, -850.0, -100.0
"""Hounsfield units of what varies too little to be drawn."""

AXES = {
    "R": (1, 0, 0),
    "L": (-1, 0, 0),
    "A": (0, 1, 0),
    "P": (0, -1, 0),
    "S": (0, 0, 1),
    "I": (0, 0, -1),
}


@dataclass(frozen=True)
class Phantom:
    """A volume and the truth about it.

    Attributes:
        volume: HU, 3-D.
        truth: uint8, 1 in the spleen, on the volume's own grid and affine.
    """

    volume: nib.Nifti1Image
    truth: nib.Nifti1Image


@dataclass(frozen=True)
class Blob:
    """An ellipsoid, bent and rippled as needed: every organ is one.

    Attributes:
        hu: what it is made of.
        centre: world RAS, mm.
        radii: along its own axes, mm.
        turn: (3, 3) rotation, own axes to world.
        bend: how far its ends along its third axis lean towards its first, in units of that radius.
        ripple: depth of its surface's waves, as a fraction of the radius.
        phase: where those waves start, radians.
    """

    hu: float
    centre: Triple
    radii: Triple
    turn: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    bend: float = 0.0
    ripple: float = 0.0
    phase: float = 0.0

    def reach(self) -> NDArray[np.float64]:
        """Half the world-aligned box, in mm, that holds it and its blurred edge: shape (3,)."""
        slack = 1 + abs(self.bend) + 2 * self.ripple
        reach: NDArray[np.float64] = np.abs(self.turn) @ np.array(self.radii) * slack + SPREAD_MM
        return reach

    def level(self, x: Array, y: Array, z: Array) -> Array:
        """Distance from the centre as a fraction of the radius there: 1 on the surface.

        Args:
            x: world coordinates, mm; y and z have the same shape.
            y: see x.
            z: see x.
        """
        own = (self.turn / np.array(self.radii)).T.astype(np.float32)
        x, y, z = (
            x - np.float32(self.centre[0]),
            y - np.float32(self.centre[1]),
            z - np.float32(self.centre[2]),
        )
        u, v, w = (a * x + b * y + c * z for a, b, c in own)
        if self.bend:  # minus a constant, so that its middle stays about where it was
            u = u + np.float32(self.bend) * (w * w - np.float32(0.4))
        level: Array = np.sqrt(u * u + v * v + w * w)
        if self.ripple:
            waves = np.sin(3 * v + self.phase) * np.cos(4 * w - self.phase)
            level *= 1 + np.float32(self.ripple) * waves
        return level


def rotation(axis: Triple, degrees: float) -> NDArray[np.float64]:
    """The (3, 3) matrix that turns world vectors about an axis (Rodrigues' formula)."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    turned: NDArray[np.float64] = (
        np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    )
    return turned


def anatomy(seed: int, spleen: bool = True) -> tuple[list[Blob], Blob | None]:
    """One patient: every organ in the order of painting, later over earlier, and the spleen.

    Args:
        seed: the patient. Nothing else about them changes with `spleen`.
        spleen: False for a patient without one: fat fills its place.
    """
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.93, 1.05)
    shift = rng.uniform(-5, 5, 3)

    def organ(
        hu: tuple[float, float],
        centre: Triple,
        radii: Triple,
        vary: float = 0.1,
        stray: float = 5.0,
        bend: float = 0.0,
        ripple: float = 0.03,
    ) -> Blob:
        at = (np.array(centre) + rng.uniform(-stray, stray, 3)) * size + shift
        along = np.array(radii) * size * rng.uniform(1 - vary, 1 + vary, 3)
        return Blob(
            hu=rng.uniform(*hu),
            centre=(at[0], at[1], at[2]),
            radii=(along[0], along[1], along[2]),
            turn=rotation((rng.normal(), rng.normal(), rng.normal()), rng.uniform(0, 12)),
            bend=bend * rng.uniform(0.5, 1.5),
            ripple=ripple,
            phase=rng.uniform(0, 2 * np.pi),
        )

    def plain(hu: float, centre: Triple, radii: Triple) -> Blob:
        at = np.array(centre) * size + shift
        along = np.array(radii) * size
        return Blob(hu, (at[0], at[1], at[2]), (along[0], along[1], along[2]))

    wall = rng.uniform(10, 16)  # mm of muscle
    fat = rng.uniform(6, 20)  # mm of fat under the skin
    inner = np.array([108.0, 78.0])
    tall = 380.0
    muscle = inner + wall
    skin = muscle + fat
    flesh = rng.uniform(42, 58)
    bone = rng.uniform(350, 650)

    blobs = [
        plain(FAT, (0, 0, 0), (skin[0], skin[1], tall)),
        plain(flesh, (0, 0, 0), (muscle[0], muscle[1], tall)),
        plain(FAT + rng.uniform(-5, 10), (0, 0, 0), (inner[0], inner[1], tall)),
    ]
    for level in np.arange(-150, 150, 30):  # ribs, each seen as the ovals a slice cuts of it
        for angle in np.radians(np.arange(-10, 370, 20)):
            x, y = (inner + wall / 2) * (np.cos(angle), np.sin(angle))
            if y > 60:
                continue  # no bone in front
            height = level + 0.35 * y + rng.uniform(-3, 3)
            blobs.append(plain(bone, (x, y, height), (5, 5, 8)))
    blobs += [plain(flesh, (side * 32, -62, 0), (26, 17, tall)) for side in (-1, 1)]
    blobs += [plain(bone * 0.6, (0, -48, z), (21, 17, 13.5)) for z in range(-160, 161, 31)]
    blobs += [plain(bone, (0, -74, z), (6, 13, 12)) for z in range(-150, 171, 31)]
    blobs += [
        organ((LUNG, LUNG + 60), (side * 60, -8, 112), (46, 62, 62), stray=8) for side in (-1, 1)
    ]
    blobs += [
        organ((35, 55), (-14, 30, 106), (44, 34, 44)),  # heart
        organ((38, 48), (-10, -20, 0), (11, 11, tall), stray=2, ripple=0),  # aorta
        organ((36, 46), (18, -14, 0), (13, 10, tall), stray=2, ripple=0),  # vena cava
        organ((56, 68), (56, 6, 26), (50, 62, 56), bend=-0.15),  # liver, its right lobe
        organ((56, 68), (6, 40, 40), (48, 24, 28)),  # and its left
        organ((5, 20), (40, 38, -22), (13, 13, 18)),  # gall bladder
        organ((28, 38), (54, -40, -52), (24, 23, 46), bend=0.2),  # kidneys
        organ((28, 38), (-54, -42, -48), (24, 23, 46), bend=-0.2),
        organ((30, 48), (-22, 6, -10), (46, 11, 13), bend=0.2),  # pancreas
    ]
    blobs += [  # bowel
        organ((15, 55), (x, rng.uniform(0, 45), rng.uniform(-110, -45)), (19, 17, 24), 0.25, 10)
        for x in (-80, -55, -28, 0, 28, 55, 80)
    ]
    blobs.append(organ((20, 55), (-74, 30, -28), (17, 18, 28), 0.2, 8))  # colon, next to the spleen
    stomach = organ((28, 56), (-46, 26, 34), (27, 33, 40), 0.15, 6, bend=0.3)
    x, y, z = stomach.centre
    blobs += [stomach, Blob(AIR + 50, (x, y + stomach.radii[1] * 0.55, z + 4), (14, 9, 18))]

    own = organ((50, 60), (-80, -26, 22), (24, 35, 46), 0.12, 5, bend=0.3, ripple=0.05)
    blobs += [own] if spleen else []
    return blobs, own if spleen else None


def directions(orientation: str) -> NDArray[np.float64]:
    """Unit vectors in world RAS, a column for each array axis: shape (3, 3).

    Args:
        orientation: where each array axis points, such as "RAS", "LPS" or "PIR".

    Raises:
        ValueError: it does not name each of the three directions once.
    """
    codes = orientation.upper()
    if sorted(codes.translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise ValueError(
            f"{orientation!r} is not an orientation: name three axes, such as RAS or LPI"
        )
    return np.array([AXES[code] for code in codes], dtype=float).T


def grid_affine(
    shape: tuple[int, int, int],
    spacing: Triple,
    orientation: str = "RAS",
    tilt_degrees: float = 0.0,
    shear: float = 0.0,
) -> NDArray[np.float64]:
    """The (4, 4) affine, voxel to world RAS mm, of a grid centred on the patient.

    Args:
        shape: voxels along the array's axes.
        spacing: mm between voxel centres along the array's axes, before any shear.
        orientation: where each array axis points, such as "RAS", "LPS" or "PIR".
        tilt_degrees: turn about the world's diagonal, so that no axis keeps its direction.
        shear: lean of the third array axis towards the second, as a tangent: a tilted gantry.

    Raises:
        ValueError: the orientation is not valid.
    """
    lean = np.eye(3)
    lean[1, 2] = shear
    affine = np.eye(4)
    affine[:3, :3] = (
        rotation((1, 1, 1), tilt_degrees) @ directions(orientation) @ lean * np.array(spacing)
    )
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def covering_shape(spacing: Triple, orientation: str = "RAS") -> tuple[int, int, int]:
    """Voxels along each array axis that cover `FIELD_MM` at a spacing (mm)."""
    extent = np.array(FIELD_MM) @ np.abs(directions(orientation))
    x, y, z = np.maximum(1, np.rint(extent / np.array(spacing)).astype(int)).tolist()
    return x, y, z


def make_phantom(
    seed: int,
    shape: tuple[int, int, int] | None = None,
    spacing: Triple = (3.0, 3.0, 3.0),
    orientation: str = "RAS",
    tilt_degrees: float = 0.0,
    shear: float = 0.0,
    spleen: bool = True,
    noise_hu: float = 12.0,
    dtype: DTypeLike = np.int16,
) -> Phantom:
    """One patient on one grid. The same arguments give the same bytes.

    Args:
        seed: the patient, and the noise.
        shape: voxels along the array's axes; None covers the trunk at this spacing.
        spacing: mm between voxel centres along the array's axes.
        orientation: where each array axis points, such as "RAS", "LPS" or "PIR".
        tilt_degrees: oblique rotation of the grid.
        shear: lean of the grid's third axis towards its second, as a tangent.
        spleen: False gives a patient without one, and an empty truth.
        noise_hu: standard deviation of the noise, HU.
        dtype: of the volume: a float, or an integer that holds -1100 to 1100 HU.

    Raises:
        ValueError: the orientation is not valid.
    """
    shape = shape or covering_shape(spacing, orientation)
    affine = grid_affine(shape, spacing, orientation, tilt_degrees, shear)
    blobs, own = anatomy(seed, spleen)
    boxes = [_box(blob, affine, shape) for blob in blobs]
    noise = np.random.default_rng([seed, 1])
    whole = np.issubdtype(dtype, np.integer)

    # Fortran order: NIfTI's own, in which a slice of the last axis is one piece of memory. Slice
    # by slice, a volume of any size needs little more than its own memory.
    volume = np.empty(shape, dtype, order="F")
    truth = np.zeros(shape, np.uint8, order="F")
    for k in range(shape[2]):
        hu = np.full(shape[:2], AIR, np.float32)
        for blob, (low, high) in zip(blobs, boxes, strict=True):
            if not low[2] <= k < high[2]:
                continue
            part = np.s_[low[0] : high[0], low[1] : high[1]]
            level = blob.level(*_world(affine, low, high, k))
            edge = np.float32(min(blob.radii) / SPREAD_MM)
            cover = np.clip((1 - level) * edge + np.float32(0.5), 0, 1)
            hu[part] += cover * (np.float32(blob.hu) - hu[part])
            if blob is own:
                truth[..., k][part] = level <= 1
        # Summed over neighbours: a scanner's noise is grainy, not white.
        grain = noise.standard_normal((shape[0] + 1, shape[1] + 1), np.float32)
        grain = grain[1:, 1:] + grain[1:, :-1] + grain[:-1, 1:] + grain[:-1, :-1]
        hu += grain * np.float32(noise_hu / 2)
        volume[..., k] = np.rint(hu) if whole else hu
    return Phantom(_image(volume, affine, shear), _image(truth, affine, shear))


def _box(
    blob: Blob, affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The voxels, low to below high, that a blob can touch."""
    to_voxel = np.linalg.inv(affine)
    middle = to_voxel[:3, :3] @ np.array(blob.centre) + to_voxel[:3, 3]
    reach = np.abs(to_voxel[:3, :3]) @ blob.reach()
    low = np.clip(np.floor(middle - reach), 0, shape).astype(np.int64)
    high = np.clip(np.ceil(middle + reach) + 1, low, shape).astype(np.int64)
    return low, high


def _world(
    affine: NDArray[np.float64], low: NDArray[np.int64], high: NDArray[np.int64], k: int
) -> list[Array]:
    """World x, y and z, mm, at the voxel centres of a box's k-th slice."""
    i = np.arange(low[0], high[0])[:, None]
    j = np.arange(low[1], high[1])[None, :]
    return [
        (row[0] * i + row[1] * j + row[2] * k + row[3]).astype(np.float32) for row in affine[:3]
    ]


def _image(data: NDArray[np.generic], affine: NDArray[np.float64], shear: float) -> nib.Nifti1Image:
    """A NIfTI image in mm, in scanner coordinates."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 0 if shear else 1)  # a quaternion cannot express a shear
    return image


def dice(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Overlap of two masks of one shape, 0 (apart) to 1 (the same, as two empty ones are)."""
    one, other = a.astype(bool), b.astype(bool)
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def random_grid(seed: int) -> tuple[Triple, str]:
    """A spacing (mm) and an orientation such as scanners and converters give, by seed."""
    rng = np.random.default_rng([seed, 2])
    plane = round(rng.uniform(1.5, 3.5), 2)
    steps = {"R": plane, "A": plane, "S": round(rng.uniform(1.5, 5.0), 2)}
    order = rng.permutation(list("RAS"))
    codes = [rng.choice([axis, {"R": "L", "A": "P", "S": "I"}[axis]]) for axis in order]
    x, y, z = (steps[axis] for axis in order)
    return (x, y, z), "".join(codes)


def main(argv: list[str] | None = None) -> None:
    """Write phantoms and their truth into a folder."""
    parser = argparse.ArgumentParser(
        description="Write CT-like phantoms of the trunk, phantom-<seed>.nii.gz, and their true "
        "spleens, phantom-<seed>-spleen.nii.gz. The same arguments write the same voxels.",
    )
    parser.add_argument(
        "outdir", type=Path, help="folder to write to; created if it does not exist"
    )
    parser.add_argument(
        "--count", type=int, default=1, help="how many phantoms (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the first; the next has one more (default: %(default)s)",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="voxels along the array's axes (default: what covers the trunk)",
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="mm between voxels along the array's axes (default: by seed)",
    )
    parser.add_argument(
        "--orientation", help="axis codes, such as RAS, LPS or PIR (default: by seed)"
    )
    parser.add_argument(
        "--tilt", type=float, default=0.0, help="oblique rotation, degrees (default: 0)"
    )
    parser.add_argument("--shear", type=float, default=0.0, help="shear, a tangent (default: 0)")
    parser.add_argument("--no-spleen", action="store_true", help="patients without a spleen")
    args = parser.parse_args(argv)

    args.outdir.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seed, args.seed + args.count):
        spacing, orientation = random_grid(seed)
        phantom = make_phantom(
            seed,
            tuple(args.shape) if args.shape else None,
            tuple(args.spacing) if args.spacing else spacing,
            args.orientation or orientation,
            args.tilt,
            args.shear,
            not args.no_spleen,
        )
        path = args.outdir / f"phantom-{seed}.nii.gz"
        nib.save(phantom.volume, path)
        nib.save(phantom.truth, args.outdir / f"phantom-{seed}-spleen.nii.gz")
        ml = (
            np.asarray(phantom.truth.dataobj).sum() * abs(np.linalg.det(phantom.truth.affine)) / 1e3
        )
        grid = " x ".join(map(str, phantom.volume.shape))
        print(f"{path}  {grid}, {''.join(nib.aff2axcodes(phantom.truth.affine))}, {ml:.0f} ml")


if __name__ == "__main__":
    main()
