import gzip
from io import BytesIO
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pfms.volumes.preview import preview_png
from tests.niftis import nifti, put

SHARED = Path(__file__).parents[2] / "shared" / "data"
TITLE = 44  # pixels at the top


def body(shape: tuple[int, int, int] = (41, 31, 25)) -> NDArray[Any]:
    """Give a bright body in air (RAS), no two sides of it alike."""
    x, y, z = np.indices(shape)
    inside = (x > 3) & (x < shape[0] - 6) & (y > 4) & (y < shape[1] - 2) & (z > 0)
    return np.where(inside, x * 3 + y * 5 - z * 4, -1000).astype("int16")


def spleen(shape: tuple[int, int, int] = (41, 31, 25)) -> NDArray[Any]:
    """Give a box on the patient's left, behind and below the middle (RAS)."""
    labels = np.zeros(shape, "uint8")
    labels[6:13, 6:11, 4:11] = 1
    return labels


def picture(folder: Path, volume: bytes, labels: bytes) -> Image.Image:
    png = preview_png(put(folder / "ct.nii.gz", volume), put(folder / "labels.nii.gz", labels))
    image = Image.open(BytesIO(png))
    assert image.format == "PNG"
    return image.convert("RGB")


def boxes(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Give left, top, right, bottom of each green shape below the title, from left to right."""
    red, green, _ = np.moveaxis(np.asarray(image).astype(int), -1, 0)[:, TITLE:]
    shown = green - red > 25
    columns = np.flatnonzero(shown.any(axis=0))
    found = []
    for group in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
        rows = np.flatnonzero(shown[:, group].any(axis=1))
        for part in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else []:
            box = (group[0], part[0] + TITLE, group[-1] + 1, part[-1] + TITLE + 1)
            found.append((int(box[0]), int(box[1]), int(box[2]), int(box[3])))
    return found


def turned(data: NDArray[Any], axes: tuple[int, ...], signs: tuple[int, ...], **more: Any) -> bytes:
    """Store a RAS volume (1 x 1.2 x 2 mm) along other axes, with the affine that says so."""
    affine = np.diag([1.0, 1.2, 2.0, 1.0])
    image = nib.Nifti1Image(data, affine)
    codes = np.array([[axis, sign] for axis, sign in zip(axes, signs, strict=True)])
    stored = image.as_reoriented(codes)
    return nifti(np.asarray(stored.dataobj), stored.affine, **more)


def test_a_volume_looks_the_same_however_it_is_stored(tmp_path: Path) -> None:
    first = None
    ways = list(product(permutations(range(3)), product((1, -1), repeat=3)))
    for axes, signs in ways[::5]:  # every order of the axes, and every flip, at least once
        shown = picture(tmp_path, turned(body(), axes, signs), turned(spleen(), axes, signs))
        first = first or shown
        assert shown.tobytes() == first.tobytes()


@pytest.mark.parametrize(
    ("dtype", "more"),
    [
        ("int16", {"order": ">"}),
        ("float64", {}),
        ("float32", {"version": 2, "order": ">"}),
        ("int32", {"scl_slope": 1, "scl_inter": 0}),
        ("int16", {"sform_code": 0}),
    ],
)
def test_type_order_and_version_do_not_show(
    tmp_path: Path, dtype: str, more: dict[str, Any]
) -> None:
    ras = (0, 1, 2), (1, 1, 1)
    usual = picture(tmp_path, turned(body(), *ras), turned(spleen(), *ras))
    other = picture(tmp_path, turned(body().astype(dtype), *ras, **more), turned(spleen(), *ras))
    assert other.tobytes() == usual.tobytes()


def test_scaled_values_are_shown_scaled(tmp_path: Path) -> None:
    ras = (0, 1, 2), (1, 1, 1)
    usual = picture(tmp_path, turned(body(), *ras), turned(spleen(), *ras))
    stored = ((body() + 1024) * 2).astype("uint16")
    scaled = turned(stored, *ras, scl_slope=0.5, scl_inter=-1024)
    assert picture(tmp_path, scaled, turned(spleen(), *ras)).tobytes() == usual.tobytes()


def test_the_patients_left_is_on_the_right_and_up_is_anterior_or_superior(tmp_path: Path) -> None:
    shape = (40, 40, 40)
    labels = np.zeros(shape, "uint8")
    labels[4:10, 24:30, 27:36] = 1  # left, a little in front of the middle, above it
    image = picture(tmp_path, nifti(body(shape), np.eye(4)), nifti(labels, np.eye(4)))
    axial, coronal, sagittal = boxes(image)
    left, top, high = 20, 44 + 32, 384  # of the first panel; each is as wide as high
    step = high + 18
    for box, panel, across, down in (
        (axial, 0, 1 - 7 / 40, 1 - 27 / 40),
        (coronal, 1, 1 - 7 / 40, 1 - 31.5 / 40),
        (sagittal, 2, 1 - 27 / 40, 1 - 31.5 / 40),  # anterior on the left
    ):
        assert (box[0] + box[2]) / 2 == pytest.approx(left + panel * step + across * high, abs=4)
        assert (box[1] + box[3]) / 2 == pytest.approx(top + down * high, abs=4)


def test_a_millimetre_is_equally_long_in_every_direction(tmp_path: Path) -> None:
    shape = (100, 50, 25)
    affine = np.diag([1.0, 2.0, 4.0, 1.0])
    labels = np.zeros(shape, "uint8")
    labels[20:60, 10:30, 5:15] = 1  # a cube of 40 mm
    found = boxes(picture(tmp_path, nifti(body(shape), affine), nifti(labels, affine)))
    sizes = [size for x0, y0, x1, y1 in found for size in (x1 - x0, y1 - y0)]
    assert len(sizes) == 6
    assert max(sizes) - min(sizes) <= 6  # of 154 pixels; a voxel is up to 15


def test_the_slices_go_through_the_spleen_even_if_its_middle_is_empty(tmp_path: Path) -> None:
    labels = np.zeros((40, 40, 40), "uint8")
    labels[2:6, 2:6, 2:6] = 1
    labels[30:38, 30:38, 30:38] = 1
    found = boxes(picture(tmp_path, nifti(body((40, 40, 40))), nifti(labels)))
    assert len(found) == 3


def test_without_a_spleen_the_middle_is_shown_and_nothing_is_drawn(tmp_path: Path) -> None:
    image = picture(tmp_path, nifti(body()), nifti(np.zeros_like(spleen())))
    assert boxes(image) == []
    assert np.asarray(image)[TITLE:].max() > 200  # the body is there


def test_a_flat_volume_has_its_flat_slices_under_each_other(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 0.4, 1.0])
    found = boxes(picture(tmp_path, nifti(body(), affine), nifti(spleen(), affine)))
    axial, coronal, sagittal = sorted(found, key=lambda box: (box[0] > 560, box[1]))
    assert axial[2] < 528 < min(coronal[0], sagittal[0])  # 41 / 31 of 384 pixels, from 20 on
    assert coronal[3] < sagittal[1]


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 3, 900), (5000, 2, 3), (2, 4100, 2)])
def test_any_shape_gives_a_picture_of_a_sensible_size(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    labels = np.zeros(shape, "uint8")
    labels[1, 1, 1] = 1
    image = picture(tmp_path, nifti(np.zeros(shape, "int16")), nifti(labels))
    assert image.width <= 1700
    assert image.height <= 520


@pytest.mark.skipif(not SHARED.is_dir(), reason="there is no folder ../shared/data")
def test_the_spleen_of_a_real_ct_is_where_a_spleen_is(tmp_path: Path) -> None:
    organs = nib.load(SHARED / "ct_abdomen_3mm_organs.nii.gz")
    mask = (np.asarray(organs.dataobj) == 1).astype("uint8")
    volume = gzip.decompress((SHARED / "ct_abdomen_3mm.nii.gz").read_bytes())
    image = picture(tmp_path, volume, nifti(mask, organs.affine))
    left, top, right, bottom = boxes(image)[0]  # axial, 464 x 384 pixels from (20, 76)
    assert 20 + 464 * 0.6 < (left + right) / 2 < 20 + 464
    assert 76 + 384 * 0.5 < (top + bottom) / 2 < 76 + 384
