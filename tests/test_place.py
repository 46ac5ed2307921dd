"""Headers whose spacing, sform and qform do not agree, or of which one cannot be used."""

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import voxel_sizes

from pfms.errors import BadResult
from pfms.volumes.admit import VolumeFacts
from pfms.volumes.geometry import same
from pfms.volumes.labels import write_labels
from pfms.volumes.preview import preview_png
from tests.niftis import OBLIQUE, Order, admit, ct, nifti, put

LPS = np.diag([-0.8, -0.9, 2.5, 1.0])
RIGID = nib.Nifti1Image(ct(), OBLIQUE).get_qform()  # a qform cannot express any other
TILTED = RIGID @ np.array([[1, 0, 0, 0], [0, 1, 0.8, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
NOTHING: dict[str, Any] = {"srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4}
BAD_SFORMS: dict[str, dict[str, Any]] = {
    "zero": NOTHING,
    "zero but for its corner": {"srow_x": [0, 0, 0, 9], "srow_y": [0] * 4, "srow_z": [0] * 4},
    "not a number": {"srow_x": [np.nan] * 4},
    "infinite": {"srow_z": [0, 0, np.inf, 0]},
    "singular": {"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0]},
    "in metres": {"srow_x": [8e-4, 0, 0, 0], "srow_y": [0, 9e-4, 0, 0], "srow_z": [0, 0, 3e-3, 0]},
}
UNSET: dict[str, Any] = {"qform_code": 0, "quatern_b": 0, "quatern_c": 0, "quatern_d": 0}
UNSET |= {"qoffset_x": 0, "qoffset_y": 0, "qoffset_z": 0}


def spaced(x: float, y: float, z: float) -> list[float]:
    return [1, x, y, z, 1, 1, 1, 1]


OTHER_PIXDIMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gantry tilt": (TILTED, {"pixdim": spaced(0.8, 0.9, 2.5), **UNSET}),
    "rounded": (RIGID, {"pixdim": spaced(0.8, 0.9, 2.52), **UNSET}),
    "rounded, left to right": (LPS, {"pixdim": spaced(0.8001, 0.9001, 2.5), **UNSET}),
    "a slice's thickness": (LPS, {"pixdim": spaced(0.8, 0.9, 5.0), **UNSET}),
    "one everywhere": (LPS, {"pixdim": spaced(1, 1, 1), **UNSET}),
    "a qform that is no rotation": (LPS, {"pixdim": spaced(1, 1, 1), "quatern_b": 9}),
    "a qform without a code": (LPS, {"pixdim": spaced(0.8, 0.9, 5.0), "qform_code": 0}),
}
BAD_PIXDIMS = {
    "zero": spaced(0, 0, 0),
    "one zero": spaced(0.8, 0.9, 0),
    "not a number": spaced(np.nan, 0.9, 2.5),
    "infinite": spaced(0.8, np.inf, 2.5),
}


def labels_of(folder: Path, copy: Path, affine: Any) -> tuple[Any, nib.Nifti1Image]:
    """The header of the labels, as it is in the file, and the image."""
    mask = (np.random.default_rng(3).uniform(size=(5, 6, 7)) < 0.3).astype("float32")
    onehot = put(folder / "input_seg.nii.gz", nifti(np.stack([1 - mask, mask], -1), affine))
    write_labels(onehot, copy, folder / "labels.nii.gz")
    return header_of(folder / "labels.nii.gz"), nib.load(folder / "labels.nii.gz")


def header_of(path: Path) -> Any:
    head = gzip.decompress(path.read_bytes())
    kind = nib.Nifti2Header if head[4:8] == b"n+2\0" else nib.Nifti1Header
    return kind(head[: kind.sizeof_hdr], check=False)


def loaded(path: Path) -> Any:
    """The affine that the plugin's own reader gives."""
    transforms = pytest.importorskip("monai.transforms")
    return np.asarray(transforms.LoadImage(image_only=True)(str(path)).affine)


def taken(folder: Path, whole: bytes, warned: str) -> tuple[VolumeFacts, Path]:
    """Admit it; it has this one warning, and the copy has the voxels and the affine it tells."""
    (folder / "input").mkdir()
    facts, copy = admit(put(folder / "input" / "upload", whole))
    assert [warned in text for text in facts.warnings] == [True]
    image = nib.load(copy)
    assert np.array_equal(image.affine, facts.affine)
    assert np.array_equal(np.asarray(image.dataobj), ct())
    assert image.shape == (5, 6, 7)
    return facts, copy


@pytest.mark.real
@pytest.mark.parametrize(("version", "order"), [(1, "<"), (1, ">"), (2, "<"), (2, ">")])
@pytest.mark.parametrize("what", BAD_SFORMS)
def test_an_sform_that_cannot_be_used_gives_way_to_the_qform_as_by_hand(
    tmp_path: Path, what: str, version: int, order: Order
) -> None:
    fields: dict[str, Any] = {"sform_code": 2, "qform_code": 1, **BAD_SFORMS[what]}
    whole = nifti(ct(), RIGID, version=version, order=order, **fields)

    facts, copy = taken(tmp_path, whole, "placed by the qform")

    assert same(np.asarray(facts.affine), RIGID)
    assert np.array_equal(loaded(copy), facts.affine)
    assert np.allclose(loaded(put(tmp_path / "by-hand.nii.gz", whole)), facts.affine, atol=1e-6)
    header, image = labels_of(tmp_path, copy, facts.affine)
    assert np.array_equal(image.affine, facts.affine)
    assert np.array_equal(image.get_sform(), facts.affine)
    assert (header["sform_code"], header["qform_code"]) == (2, 1)
    assert np.allclose(image.get_qform(), RIGID, atol=1e-5)


@pytest.mark.real
@pytest.mark.parametrize(("version", "order"), [(1, "<"), (1, ">"), (2, "<"), (2, ">")])
@pytest.mark.parametrize("what", OTHER_PIXDIMS)
def test_an_sform_of_another_spacing_is_used_if_no_qform_counts(
    tmp_path: Path, what: str, version: int, order: Order
) -> None:
    affine, fields = OTHER_PIXDIMS[what]
    whole = nifti(ct(), affine, version=version, order=order, **fields)

    facts, copy = taken(tmp_path, whole, "placed by the sform")

    assert np.allclose(facts.affine, affine, atol=1e-5)
    assert facts.spacing == pytest.approx(voxel_sizes(affine), rel=1e-6)
    assert np.array_equal(loaded(copy), facts.affine)
    header, image = labels_of(tmp_path, copy, facts.affine)
    assert np.array_equal(image.affine, facts.affine)
    upload = header_of(put(tmp_path / "upload", whole))
    for field in ("pixdim", "srow_x", "srow_y", "srow_z", "sform_code", "qform_code"):
        np.testing.assert_array_equal(header[field], upload[field])
    for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        np.testing.assert_array_equal(header[field], upload[field])


@pytest.mark.real
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("qform_code", [0, 1])
@pytest.mark.parametrize("what", BAD_PIXDIMS)
def test_a_spacing_that_cannot_be_used_gives_way_to_that_of_the_sform(
    tmp_path: Path, what: str, qform_code: int, version: int
) -> None:
    fields: dict[str, Any] = {"pixdim": BAD_PIXDIMS[what], "qform_code": qform_code}
    facts, copy = taken(tmp_path, nifti(ct(), version=version, **fields), "placed by the sform")
    assert np.array_equal(loaded(copy), facts.affine)
    header, image = labels_of(tmp_path, copy, facts.affine)
    assert np.array_equal(image.affine, facts.affine)
    assert np.allclose(header["pixdim"][1:4], [0.8, 0.9, 2.5], atol=1e-4)


@pytest.mark.real
@pytest.mark.parametrize("axes", [3, 4])
def test_if_both_count_and_differ_the_plugin_gets_what_it_uses_by_hand(
    tmp_path: Path, axes: int
) -> None:
    data = ct() if axes == 3 else ct()[..., np.newaxis]
    whole = nifti(data, TILTED, pixdim=spaced(0.8, 0.9, 2.5))
    facts, copy = taken(tmp_path, whole, "uses the qform" if axes == 3 else "placed by the sform")
    by_hand = loaded(put(tmp_path / "by-hand.nii.gz", whole))
    assert np.allclose(loaded(copy), by_hand, atol=1e-6)
    assert np.allclose(facts.affine, TILTED, atol=1e-5)
    header, image = labels_of(tmp_path, copy, by_hand)
    assert np.array_equal(image.affine, facts.affine)
    assert np.array_equal(header["pixdim"][:4], np.array([1, 0.8, 0.9, 2.5], np.float32))


@pytest.mark.parametrize("what", ["gantry tilt", "one everywhere", "not a number"])
def test_the_preview_is_that_of_the_volume_with_its_header_put_right(
    tmp_path: Path, what: str
) -> None:
    if what in OTHER_PIXDIMS:
        affine, fields = OTHER_PIXDIMS[what]
        right = nifti(ct(), affine, qform_code=0, pixdim=spaced(*voxel_sizes(affine)))
        wrong = nifti(ct(), affine, **fields)
    else:
        right, wrong = nifti(ct(), RIGID), nifti(ct(), RIGID, **BAD_SFORMS[what])
    drawn = []
    for name, whole in (("right", right), ("wrong", wrong)):
        folder = tmp_path / name
        folder.mkdir()
        _, copy = admit(put(folder / "upload", whole))
        labels_of(folder, copy, nib.load(copy).affine)
        drawn.append(preview_png(copy, folder / "labels.nii.gz"))
    assert drawn[0] == drawn[1]


def test_a_result_that_lies_where_the_upload_would_have_misled_the_plugin_does_not_pass(
    tmp_path: Path,
) -> None:
    affine, fields = OTHER_PIXDIMS["one everywhere"]
    _, copy = taken(tmp_path, nifti(ct(), affine, **fields), "placed by the sform")
    with pytest.raises(BadResult, match="affine"):
        labels_of(tmp_path, copy, np.eye(4))


def test_an_extension_of_the_uploads_own_says_nothing_about_the_labels(tmp_path: Path) -> None:
    affine, fields = OTHER_PIXDIMS["rounded"]
    facts, copy = taken(tmp_path, nifti(ct(), affine, **fields), "placed by the sform")
    (tmp_path / "again").mkdir()
    again, copy = admit(put(tmp_path / "again" / "upload", gzip.decompress(copy.read_bytes())))
    assert again.affine == facts.affine
    assert again.warnings == ()
    header, _ = labels_of(tmp_path, copy, again.affine)
    assert np.allclose(header["pixdim"][1:4], again.spacing, rtol=1e-6)
