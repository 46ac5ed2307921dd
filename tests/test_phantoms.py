import subprocess
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel import affines
from numpy.typing import NDArray

from examples import phantoms
from examples.phantoms import Phantom, dice, make_phantom

SHAPE = (48, 40, 32)
small_phantom = partial(make_phantom, shape=SHAPE, spacing=(5.0, 5.0, 5.0))


def mask(phantom: Phantom) -> NDArray[np.uint8]:
    return np.asarray(phantom.truth.dataobj)


def spleen_ml(phantom: Phantom) -> float:
    return float(mask(phantom).sum() * abs(np.linalg.det(phantom.truth.affine)) / 1000)


def spleen_centre(phantom: Phantom) -> NDArray[np.float64]:
    """World RAS, mm."""
    middle = np.argwhere(mask(phantom)).mean(axis=0)
    return np.asarray(affines.apply_affine(phantom.truth.affine, middle))


def test_the_same_arguments_give_the_same_bytes() -> None:
    first, again = small_phantom(3), small_phantom(3)

    assert first.volume.to_bytes() == again.volume.to_bytes()
    assert first.truth.to_bytes() == again.truth.to_bytes()


def test_another_seed_is_another_patient() -> None:
    assert dice(mask(small_phantom(3)), mask(small_phantom(4))) < 0.98


@pytest.mark.parametrize(("tilt", "shear"), [(0.0, 0.0), (20.0, 0.0), (0.0, 0.3), (10.0, -0.2)])
def test_the_truth_lies_on_the_grid_of_the_volume(tilt: float, shear: float) -> None:
    phantom = small_phantom(0, orientation="LIP", tilt_degrees=tilt, shear=shear)

    assert phantom.volume.shape == phantom.truth.shape == SHAPE
    np.testing.assert_array_equal(phantom.volume.affine, phantom.truth.affine)
    assert phantom.volume.get_data_dtype() == np.int16
    assert phantom.truth.get_data_dtype() == np.uint8
    assert set(np.unique(mask(phantom))) == {0, 1}


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "ILP"])
def test_the_axes_point_in_the_requested_directions(codes: str) -> None:
    phantom = make_phantom(0, spacing=(4.0, 5.0, 6.0), orientation=codes)

    assert "".join(nib.aff2axcodes(phantom.volume.affine)) == codes
    assert phantom.volume.header.get_zooms() == (4.0, 5.0, 6.0)


@pytest.mark.parametrize("codes", ["RAX", "RLS", "RA", "RASS", ""])
def test_an_invalid_orientation_is_refused(codes: str) -> None:
    with pytest.raises(ValueError, match="is not an orientation"):
        make_phantom(0, orientation=codes)


def test_a_tilted_grid_is_oblique_and_keeps_its_spacing() -> None:
    affine = small_phantom(0, tilt_degrees=15.0).volume.affine

    assert (affines.obliquity(affine) > 0.05).all()
    np.testing.assert_allclose(affines.voxel_sizes(affine), 5.0)


def test_a_sheared_grid_keeps_the_volume_of_its_voxels() -> None:
    affine = small_phantom(0, shear=0.3).volume.affine

    np.testing.assert_allclose(abs(np.linalg.det(affine)), 125)
    assert abs(affine[:3, 1] @ affine[:3, 2]) > 1  # axes no longer at right angles


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_the_spleen_is_on_the_patients_left_whatever_the_orientation(seed: int, codes: str) -> None:
    phantom = make_phantom(seed, spacing=(4.0, 4.0, 4.0), orientation=codes)

    assert spleen_centre(phantom)[0] < -50


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("spacing", "codes", "tilt", "shear"),
    [
        ((3.0, 3.0, 3.0), "LPS", 0.0, 0.0),
        ((1.6, 1.6, 5.0), "RAS", 0.0, 0.0),
        ((5.0, 2.0, 2.0), "SLP", 0.0, 0.0),
        ((4.0, 4.0, 4.0), "PIR", 20.0, 0.0),
        ((3.0, 3.0, 4.0), "RAS", 0.0, 0.25),
    ],
)
def test_the_spleen_has_the_same_volume_on_every_grid(
    seed: int, spacing: phantoms.Triple, codes: str, tilt: float, shear: float
) -> None:
    reference = spleen_ml(make_phantom(seed, spacing=(2.5, 2.5, 2.5)))
    phantom = make_phantom(seed, spacing=spacing, orientation=codes, tilt_degrees=tilt, shear=shear)

    assert 80 < reference < 300
    assert spleen_ml(phantom) == pytest.approx(reference, rel=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_a_small_volume_holds_the_whole_spleen(seed: int) -> None:
    inside = np.argwhere(mask(small_phantom(seed)))

    assert (inside.min(axis=0) > 0).all()
    assert (inside.max(axis=0) < np.array(SHAPE) - 1).all()


def test_intensities_are_those_of_a_ct() -> None:
    phantom = make_phantom(0, spacing=(3.0, 3.0, 3.0))
    hu = np.asarray(phantom.volume.dataobj)

    assert hu[0, 0, 0] == pytest.approx(-1000, abs=80)
    assert 45 < hu[mask(phantom) == 1].mean() < 65
    assert hu.max() > 300


def test_without_a_spleen_the_truth_is_empty_and_the_rest_is_the_same() -> None:
    with_one = small_phantom(2)
    without = small_phantom(2, spleen=False)
    there = mask(with_one) == 1
    hu = np.asarray(without.volume.dataobj)

    assert not mask(without).any()
    assert hu[there].mean() < 0  # fat, for the most part
    right_half = np.asarray(with_one.volume.dataobj)[24:]
    np.testing.assert_array_equal(hu[24:], right_half)


def test_a_float_volume_is_the_integer_one_before_rounding() -> None:
    floats = np.asarray(small_phantom(1, dtype=np.float32).volume.dataobj)
    whole = np.asarray(small_phantom(1).volume.dataobj)

    assert floats.dtype == np.float32
    np.testing.assert_array_equal(np.rint(floats), whole)


def test_dice_is_the_overlap_of_two_masks() -> None:
    a, b = np.array([1, 1, 0, 0]), np.array([0, 1, 1, 0])

    assert dice(a, a) == 1
    assert dice(a, b) == 0.5
    assert dice(a, 1 - a) == 0
    assert dice(a * 0, b * 0) == 1


def test_the_command_writes_the_phantoms_that_it_is_asked_for(tmp_path: Path) -> None:
    grid = "--shape 48 40 32 --spacing 5 5 5 --orientation LPS --tilt 10 --shear 0.1"

    phantoms.main([str(tmp_path / "new"), "--count", "2", "--seed", "7", *grid.split()])

    written = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert written == [
        "phantom-7-spleen.nii.gz",
        "phantom-7.nii.gz",
        "phantom-8-spleen.nii.gz",
        "phantom-8.nii.gz",
    ]
    expected = small_phantom(8, orientation="LPS", tilt_degrees=10, shear=0.1)
    volume = nib.load(tmp_path / "new" / "phantom-8.nii.gz")
    truth = nib.load(tmp_path / "new" / "phantom-8-spleen.nii.gz")
    np.testing.assert_array_equal(volume.get_fdata(), expected.volume.get_fdata())
    np.testing.assert_array_equal(truth.get_fdata(), expected.truth.get_fdata())
    np.testing.assert_allclose(volume.affine, expected.volume.affine, atol=1e-4)


def test_the_command_draws_the_grid_by_seed_if_none_is_given(tmp_path: Path) -> None:
    phantoms.main([str(tmp_path), "--seed", "1", "--no-spleen"])

    (spacing, codes) = phantoms.random_grid(1)
    volume = nib.load(tmp_path / "phantom-1.nii.gz")
    assert "".join(nib.aff2axcodes(volume.affine)) == codes
    assert volume.header.get_zooms() == pytest.approx(spacing)
    assert not nib.load(tmp_path / "phantom-1-spleen.nii.gz").get_fdata().any()


def test_the_script_runs_as_a_plain_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, phantoms.__file__, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "phantom-<seed>-spleen.nii.gz" in done.stdout
