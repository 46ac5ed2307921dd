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

from pfms.errors import InvalidParameter
from pfms.volumes import parts
from pfms.volumes.planes import PLANES, Plane, Wanted, view_of
from pfms.volumes.preview import preview_png
from pfms.volumes.reader import NiftiReader
from tests.niftis import OBLIQUE, nifti, put

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


def picture(folder: Path, volume: bytes, labels: bytes, **wanted: Any) -> Image.Image:
    png = preview_png(
        put(folder / "ct.nii.gz", volume),
        put(folder / "labels.nii.gz", labels),
        Wanted(**wanted),
    )
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


def test_the_slices_go_through_the_largest_part_and_show_the_others(tmp_path: Path) -> None:
    labels = np.zeros((60, 60, 60), "uint8")
    labels[4:14, 4:14, 4:14] = 1
    labels[40:48, 40:48, 40:48] = 1
    labels[20:22, 4:14, 30:32] = 1  # in the coronal slice through the largest part
    at = np.eye(4)
    found = boxes(picture(tmp_path, nifti(body((60, 60, 60)), at), nifti(labels, at)))
    scale = 384 / 60
    assert len(found) == 4
    axial = found[0]
    assert axial[2] - axial[0] == pytest.approx(10 * scale, abs=3)
    assert axial[0] == pytest.approx(20 + (60 - 14) * scale, abs=3)
    assert axial[1] == pytest.approx(44 + 32 + (60 - 14) * scale, abs=3)


def parts_of(mask: NDArray[Any]) -> list[NDArray[Any]]:
    """Give the indices of each connected part, by visiting one voxel after the other."""
    left, found = {tuple(map(int, at)) for at in np.argwhere(mask)}, []
    while left:
        part, edge = [], [left.pop()]
        while edge:
            at = edge.pop()
            part.append(at)
            for axis, step in product(range(3), (-1, 1)):
                near = (*at[:axis], at[axis] + step, *at[axis + 1 :])
                if near in left:
                    left.remove(near)
                    edge.append(near)
        found.append(np.array(part))
    return found


def look_for_part(folder: Path, mask: NDArray[Any]) -> parts.LargestPart:
    with NiftiReader(put(folder / "labels.nii", nifti(mask), packed=False)) as source:
        return parts.largest_part(source)


def test_the_largest_part_hangs_together_by_faces(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for share in (0.1, 0.3, 0.4, 0.7) * 8:
        mask = (rng.random(rng.integers(1, 9, 3)) < share).astype("uint8")
        if not mask.any():
            continue
        found, every = look_for_part(tmp_path, mask), parts_of(mask)
        assert found.labelled == mask.sum()
        most = max(map(len, every))
        ends = [(part.min(0).tolist(), part.max(0).tolist()) for part in every if len(part) == most]
        assert (list(found.first), list(found.last)) in ends
        for axis, index in enumerate(found.middle):
            assert found.first[axis] <= index <= found.last[axis]
            assert mask.take(index, axis).any()


def test_of_mere_noise_all_counts_as_one_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_MOST_RUNS", 3)
    mask = np.zeros((9, 8, 7), "uint8")
    mask[::2, ::2, ::2] = 1
    assert look_for_part(tmp_path, mask) == parts.LargestPart(80, (4, 0, 0), (0, 0, 0), (8, 6, 6))


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


# --- one plane, one slice, a mosaic ------------------------------------------------------------


@pytest.mark.parametrize("plane", PLANES)
def test_a_slice_has_the_number_it_has_in_nibabels_canonical_orientation(
    tmp_path: Path, plane: Plane
) -> None:
    """The labels are a box in RAS: a slice shows it from its first index to its last."""
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    there = np.flatnonzero(spleen().any(axis=tuple({0, 1, 2} - {axis})))
    first, last = int(there[0]), int(there[-1])
    for axes, signs in (((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 2, 0), (1, -1, -1))):
        stored = turned(body(), axes, signs), turned(spleen(), axes, signs)
        for number, shown in ((first - 1, 0), (first, 1), (last, 1), (last + 1, 0)):
            image = picture(tmp_path, *stored, plane=plane, slice=number)
            assert len(boxes(image)) == shown, (axes, signs, number)


@pytest.mark.parametrize("wanted", [{"plane": "coronal"}, {"mosaic": 3}])
def test_one_plane_and_a_mosaic_look_the_same_however_stored(
    tmp_path: Path, wanted: dict[str, Any]
) -> None:
    ways = [((0, 1, 2), (1, 1, 1)), ((1, 0, 2), (-1, -1, -1)), ((2, 1, 0), (1, -1, 1))]
    pictures = {
        picture(tmp_path, turned(body(), *way), turned(spleen(), *way), **wanted).tobytes()
        for way in ways
    }
    assert len(pictures) == 1


def test_one_plane_is_larger_and_goes_through_the_spleen(tmp_path: Path) -> None:
    for plane in PLANES:
        image = picture(tmp_path, nifti(body()), nifti(spleen()), plane=plane)
        assert len(boxes(image)) == 1
        assert 450 < image.height <= 44 + 32 + 720 + 20


@pytest.mark.parametrize(("asked", "shown"), [(2, 2), (4, 4), (7, 7), (36, 7)])
def test_a_mosaic_shows_so_many_slices_or_all_of_the_part(
    tmp_path: Path, asked: int, shown: int
) -> None:
    labels = spleen()  # 7 axial slices
    labels[30:32, 20:22, 20:25] = 1  # a smaller part: none is wanted of it
    image = picture(tmp_path, nifti(body(), np.eye(4)), nifti(labels, np.eye(4)), mosaic=asked)
    assert len(boxes(image)) == shown


def test_a_mosaic_without_a_spleen_goes_through_the_whole_volume(tmp_path: Path) -> None:
    flat = np.zeros((20, 20, 10), "int16")
    flat += np.arange(10, dtype="int16") * 20  # each slice has a grey of its own
    image = picture(
        tmp_path, nifti(flat, np.eye(4)), nifti(np.zeros(flat.shape, "uint8")), mosaic=10
    )
    levels, counts = np.unique(np.asarray(image.convert("L")), return_counts=True)
    assert len(levels[counts > 20_000]) >= 10
    assert boxes(image) == []


@pytest.mark.parametrize("wanted", [{"plane": "sagittal"}, {"mosaic": 36}, {"mosaic": 2}])
@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 3, 900), (5000, 2, 3), (2, 4100, 2)])
def test_no_picture_is_ever_too_large(
    tmp_path: Path, shape: tuple[int, int, int], wanted: dict[str, Any]
) -> None:
    image = picture(tmp_path, nifti(np.zeros(shape, "int16")), nifti(np.zeros(shape)), **wanted)
    assert image.width <= 1600 + 35 * 18 + 40
    assert image.height <= 1200 + 36 * 33 + 64


def test_the_bar_is_as_long_as_it_says(tmp_path: Path) -> None:
    shape = (200, 150, 60)
    labels = np.zeros(shape, "uint8")
    labels[60:160, 40:90, 20:40] = 1  # 100 mm from right to left
    image = picture(tmp_path, nifti(body(shape), np.eye(4)), nifti(labels, np.eye(4)))
    left, _, right, _ = boxes(image)[0]
    row = np.asarray(image.convert("L"))[22]  # the middle of the title
    bar = np.flatnonzero(row > 200)
    bar = bar[bar > image.width - 20 - image.width // 5 - 2]
    assert bar[-1] == image.width - 21
    assert len(bar) == bar[-1] - bar[0] + 1
    assert len(bar) == pytest.approx(right - left, abs=3)  # 100 mm


@pytest.mark.parametrize(
    ("affine", "plane", "letters"),
    [
        (np.diag([1.0, 1, 1, 1]), "axial", ("R", "L", "A", "P")),
        (np.diag([-1.0, -1, 1, 1]), "axial", ("R", "L", "A", "P")),
        (np.diag([1.0, 1, -1, 1]), "coronal", ("R", "L", "S", "I")),
        (np.diag([1.0, 2, 5, 1])[[1, 2, 0, 3]], "sagittal", ("A", "P", "S", "I")),
        (OBLIQUE, "axial", ("R", "L", "A", "P")),
        (OBLIQUE @ np.diag([1, -1, -1, 1]), "sagittal", ("A", "P", "S", "I")),
    ],
)
def test_the_letters_say_what_lies_at_each_edge(
    affine: NDArray[Any], plane: Plane, letters: tuple[str, ...]
) -> None:
    assert view_of(plane, affine).letters == letters


def test_an_oblique_volume_has_two_letters_at_an_edge() -> None:
    cos, sin = np.cos(np.radians(30)), np.sin(np.radians(30))
    tilted = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1.0]])
    assert view_of("axial", tilted).letters == ("R", "L", "AS", "PI")
    assert view_of("coronal", tilted).letters == ("R", "L", "SP", "IA")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted(slice=1), "plane"),
        (Wanted("axial", slice=1, mosaic=4), "mosaic"),
        (Wanted("axial", slice=4), "0 to 3"),
        (Wanted("coronal", slice=3), "0 to 2"),
        (Wanted("sagittal", slice=2), "0 to 1"),
    ],
)
def test_what_the_volume_does_not_have_is_refused_with_a_remedy(wanted: Wanted, words: str) -> None:
    with pytest.raises(InvalidParameter) as told:
        wanted.check((3, 4, 2), "PIR")
    assert words in told.value.detail + told.value.remedy


def test_what_the_volume_has_is_not_refused() -> None:
    for wanted in (Wanted(), Wanted("axial"), Wanted("axial", 3), Wanted("coronal", mosaic=36)):
        wanted.check((3, 4, 2), "PIR")
