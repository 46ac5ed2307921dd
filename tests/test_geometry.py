from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from pfms.plugin import PLUGIN
from pfms.volumes.geometry import loaded_affine, same, voxel_millilitres
from tests.niftis import OBLIQUE, ct, nifti, put

dice = np.random.default_rng


def _affine(kind: str, seed: int) -> NDArray[np.float64]:
    """Give an affine of this kind; every fifth has nearly the spacing of the network."""
    random = dice(seed)
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    shear = np.eye(3) + np.triu(random.uniform(-0.4, 0.4, (3, 3)), 1)
    flips = np.diag(random.choice([-1.0, 1.0], 3))
    matrix = {
        "upright": np.eye(3)[random.permutation(3)] @ flips,
        "oblique": turn,
        "sheared": shear @ flips,
        "oblique and sheared": turn @ shear,
    }[kind]
    zooms = random.uniform(0.4, 6.0, 3)
    if seed % 5 == 0:
        zooms = random.permutation([1.5, 1.5, 2.0]) + random.uniform(-0.0015, 0.0015, 3)
    affine = np.eye(4)
    affine[:3, :3] = matrix @ np.diag(zooms)
    affine[:3, 3] = random.uniform(-300, 300, 3)
    return affine


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::FutureWarning")  # MONAI's, about its next versions
@pytest.mark.parametrize("kind", ["upright", "oblique", "sheared", "oblique and sheared"])
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("stretch", [1.0, 1.3])
def test_affine_and_grid_are_those_of_the_plugins_own_transforms(
    tmp_path: Path, kind: str, codes: tuple[int, int], stretch: float
) -> None:
    transforms = pytest.importorskip("monai.transforms")
    load = transforms.Compose(
        [transforms.LoadImaged(["image"]), transforms.EnsureChannelFirstd(["image"])]
    )
    resample = transforms.Compose(
        [
            transforms.Orientationd(["image"], axcodes="RAS"),
            transforms.Spacingd(["image"], pixdim=(1.5, 1.5, 2.0), mode="bilinear"),
        ]
    )
    for seed in range(8):
        x, y, z = (int(length) for length in dice(seed).integers(2, 14, 3))
        whole = nifti(ct((x, y, z)), _affine(kind, seed), sform_code=codes[0], qform_code=codes[1])
        path = put(tmp_path / "input.nii.gz", whole)
        header = nib.load(path).header
        if stretch != 1.0:  # pixdim that is not the sform's
            pixdim = header["pixdim"] * np.array([1, *[stretch] * 3, 1, 1, 1, 1])
            put(path, nifti(ct((x, y, z)), _affine(kind, seed), pixdim=pixdim))
            header = nib.load(path).header
        loaded = load({"image": str(path)})
        affine = loaded_affine(header)
        assert np.allclose(np.asarray(loaded["image"].affine), affine, atol=1e-9)
        assert tuple(resample(loaded)["image"].shape[1:]) == PLUGIN.network_grid((x, y, z), affine)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ((3.0, 3.0, 3.0), (19, 39, 44)),  # 9 x 3 / 1.5 + 1, 19 x 3 / 1.5 + 1, 29 x 3 / 2 + 1
        ((1.5, 1.5, 2.0), (10, 20, 30)),
        ((1.4995, 1.5005, 2.0009), (10, 20, 30)),  # within a thousandth: left unchanged
        ((0.1, 0.1, 0.1), (2, 2, 2)),
    ],
)
def test_the_grid_spans_from_the_first_voxel_to_the_last(
    spacing: tuple[float, float, float], expected: tuple[int, int, int]
) -> None:
    assert PLUGIN.network_grid((10, 20, 30), np.diag([*spacing, 1.0])) == expected
    flipped = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    assert PLUGIN.network_grid((10, 20, 30), flipped) == expected


def test_the_grid_is_turned_to_ras() -> None:
    affine = np.array([[0, 0, 1.5, 0], [1.5, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    assert PLUGIN.network_grid((10, 20, 30), affine) == (30, 10, 20)


def test_affines_are_the_same_within_a_thousandth_or_what_single_precision_holds() -> None:
    nudge = np.zeros((4, 4))
    nudge[0, 3] = 0.9e-3
    assert same(OBLIQUE, OBLIQUE + nudge)
    assert not same(OBLIQUE, OBLIQUE + 1.2 * nudge)
    far = OBLIQUE.copy()
    far[0, 3] = 123_456.789
    assert same(far, far.astype(np.float32).astype(np.float64))


def test_a_millilitre_is_a_thousand_cubic_millimetres_whichever_way_the_axes_run() -> None:
    assert voxel_millilitres(np.diag([-10.0, 10, 10, 1])) == pytest.approx(1.0)
    assert voxel_millilitres(OBLIQUE) == pytest.approx(0.8 * 0.9 * 2.5 / 1000, rel=1e-2)
