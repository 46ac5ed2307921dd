import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from pfms.errors import BadResult
from pfms.volumes.admit import VolumeLimits, admit_volume
from pfms.volumes.labels import check_logits, labels_checksum, write_labels
from tests.niftis import OBLIQUE, ct, nifti, put

LPS = np.diag([-0.8, -0.9, 2.5, 1.0])
LIMITS = VolumeLimits(max_volume_bytes=1 << 40, max_grid_voxels=1 << 40)
SECRET = b"DOE^JANE"


def truth(shape: tuple[int, ...] = (5, 6, 7)) -> NDArray[np.uint8]:
    """Give a spleen of some voxels that no flip or turn maps to itself."""
    return (np.random.default_rng(3).uniform(size=shape) < 0.3).astype(np.uint8)


def onehot(labels: NDArray[Any], dtype: str = "float32") -> NDArray[Any]:
    """Give what the plugin writes for these labels."""
    channels: NDArray[Any] = np.stack([1 - labels, labels], axis=-1)
    return channels.astype(dtype)


def volume(folder: Path, whole: bytes) -> Path:
    """Give what the plugin would get of this upload."""
    target = folder / "input.nii.gz"
    admit_volume(put(folder / "upload", whole), target, LIMITS)
    return target


@pytest.mark.parametrize(("version", "order"), list(product((1, 2), ("<", ">"))))
@pytest.mark.parametrize("codes", [(1, 1), (4, 2), (0, 3), (1, 0), (0, 0)])
@pytest.mark.parametrize("affine", [np.eye(4), LPS, OBLIQUE], ids=["RAS", "LPS", "oblique"])
def test_labels_lie_exactly_where_the_volume_lies(
    tmp_path: Path, affine: Any, codes: tuple[int, int], version: int, order: Any
) -> None:
    whole = nifti(
        ct(dtype="int32"),
        affine,
        version=version,
        order=order,
        sform_code=codes[0],
        qform_code=codes[1],
        xyzt_units=10,
        scl_slope=0.5,
        scl_inter=-24,
        descrip=SECRET,
        aux_file=SECRET,
        intent_name=SECRET,
        cal_max=400,
    )
    given = volume(tmp_path, whole)
    source = nib.load(given)
    result = put(tmp_path / "input_seg.nii.gz", nifti(onehot(truth()), source.affine))
    target = tmp_path / "segmentation.nii.gz"
    facts = write_labels(result, given, target)

    image = nib.load(target)
    assert type(image) is type(source)
    assert image.header.endianness == "<"
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(image.dataobj), truth())
    assert np.array_equal(image.affine, source.affine)
    for field in ("pixdim", "qform_code", "sform_code", "xyzt_units"):
        assert np.array_equal(image.header[field], source.header[field])
    assert np.array_equal(image.get_sform(), source.get_sform())
    assert np.array_equal(image.get_qform(), source.get_qform())
    assert image.header.get_intent()[0] == "label"
    assert SECRET not in gzip.decompress(target.read_bytes())
    assert {path.name for path in tmp_path.iterdir()} == {
        *("input.nii.gz", "input_seg.nii.gz", "segmentation.nii.gz")
    }

    assert facts.spleen_voxels == truth().sum()
    millilitres = truth().sum() * abs(np.linalg.det(source.affine)) / 1000
    assert facts.spleen_ml == pytest.approx(millilitres)
    assert facts.voxels_sha256 == hashlib.sha256(truth().tobytes(order="F")).hexdigest()
    assert labels_checksum(result) == facts.voxels_sha256


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float32", "float64"])
@pytest.mark.parametrize("scaling", [{}, {"scl_slope": 2, "scl_inter": -1}])
def test_the_plugins_type_and_scaling_do_not_matter(
    tmp_path: Path, dtype: str, scaling: dict[str, Any]
) -> None:
    stored = onehot(truth(), dtype)
    if scaling:
        stored = ((stored + 1) / 2).astype("float64")
    given = volume(tmp_path, nifti(ct()))
    result = put(tmp_path / "seg", nifti(stored, order=">", **scaling))
    facts = write_labels(result, given, tmp_path / "labels.nii.gz")
    assert facts.spleen_voxels == truth().sum()
    assert np.array_equal(np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj), truth())


@pytest.mark.parametrize("order", ["<", ">"])
def test_single_precision_is_compared_to_the_bit(tmp_path: Path, order: Any) -> None:
    given = volume(tmp_path, nifti(ct()))
    stored = onehot(truth(), "float32")
    stored[stored == 0] = -0.0
    result = put(tmp_path / "seg", nifti(stored, order=order))
    assert write_labels(result, given, tmp_path / "labels.nii.gz").spleen_voxels == truth().sum()
    for bits in (0x3F800001, 0x3F803F80, 0x00003F80, 0x0000803F, 0x3F000000, 0x7FC00000, 1):
        stored[2, 3, 4] = np.array([bits, 0], "uint32").view("float32")
        with pytest.raises(BadResult, match="other than 0 and 1"):
            labels_checksum(put(tmp_path / "seg", nifti(stored, order=order)))


def test_no_spleen_is_an_empty_mask_and_not_an_error(tmp_path: Path) -> None:
    given = volume(tmp_path, nifti(ct()))
    result = put(tmp_path / "seg", nifti(onehot(np.zeros((5, 6, 7), "uint8"))))
    facts = write_labels(result, given, tmp_path / "labels.nii.gz")
    assert (facts.spleen_voxels, facts.spleen_ml) == (0, 0.0)
    assert not np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj).any()


def test_a_volume_of_four_axes_gets_labels_of_three(tmp_path: Path) -> None:
    given = volume(tmp_path, nifti(ct()[..., np.newaxis]))
    result = put(tmp_path / "seg", nifti(onehot(truth())))
    write_labels(result, given, tmp_path / "labels.nii.gz")
    assert nib.load(tmp_path / "labels.nii.gz").shape == (5, 6, 7)


def test_channels_that_end_inside_a_piece_are_kept_apart(tmp_path: Path) -> None:
    labels = truth((131, 67, 71))  # 2.4 MiB a channel
    given = volume(tmp_path, nifti(ct(labels.shape)))
    result = put(tmp_path / "seg", nifti(onehot(labels)))
    facts = write_labels(result, given, tmp_path / "labels.nii.gz")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj), labels)
    assert facts.voxels_sha256 == hashlib.sha256(labels.tobytes(order="F")).hexdigest()


def test_equal_segmentations_give_equal_files(tmp_path: Path) -> None:
    given = volume(tmp_path, nifti(ct()))
    result = put(tmp_path / "seg", nifti(onehot(truth())))
    write_labels(result, given, tmp_path / "one.nii.gz")
    write_labels(result, given, tmp_path / "two.nii.gz")
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


def test_if_sform_and_qform_differ_the_plugin_may_have_used_either(tmp_path: Path) -> None:
    sform: dict[str, Any] = {"srow_x": [2, 0, 0, 0], "srow_y": [0, 2, 0, 0], "srow_z": [0, 0, 2, 0]}
    given = volume(tmp_path, nifti(ct(), OBLIQUE, **sform))
    source = nib.load(given)
    for affine in (source.get_sform(), source.get_qform()):
        result = put(tmp_path / "seg", nifti(onehot(truth()), affine))
        write_labels(result, given, tmp_path / "labels.nii.gz")
        assert np.array_equal(nib.load(tmp_path / "labels.nii.gz").affine, source.affine)
    result = put(tmp_path / "seg", nifti(onehot(truth()), np.eye(4)))
    with pytest.raises(BadResult):
        write_labels(result, given, tmp_path / "labels.nii.gz")


# --- what does not pass ------------------------------------------------------------------------


def moved(by: float) -> NDArray[np.float64]:
    affine = OBLIQUE.copy()
    affine[1, 3] += by
    return affine


def with_voxel(value: float) -> NDArray[Any]:
    data = onehot(truth())
    data[1, 2, 3, 0] = value
    return data


BOTH = onehot(truth())
BOTH[4, 5, 6] = 1
NEITHER = onehot(truth())
NEITHER[0, 0, 0] = 0
BAD: dict[str, tuple[bytes, str]] = {
    "three axes": (nifti(truth().astype("float32")), "shape 5 x 6 x 7,"),
    "channel first": (nifti(np.moveaxis(onehot(truth()), -1, 0)), "shape 2 x 5 x 6 x 7,"),
    "three channels": (nifti(np.zeros((5, 6, 7, 3), "float32")), "shape 5 x 6 x 7 x 3"),
    "another grid": (nifti(onehot(truth((7, 6, 5)))), "shape 7 x 6 x 5 x 2"),
    "moved": (nifti(onehot(truth()), moved(0.0015)), "affine"),
    "flipped": (nifti(onehot(truth()), OBLIQUE @ np.diag([-1, 1, 1, 1])), "affine"),
    "no affine": (nifti(onehot(truth()), srow_x=[np.nan] * 4), "affine"),
    "a score": (nifti(with_voxel(0.9999)), "other than 0 and 1"),
    "a third label": (nifti(with_voxel(2.0)), "other than 0 and 1"),
    "not a number": (nifti(with_voxel(np.nan)), "other than 0 and 1"),
    "both": (nifti(BOTH), "sum to one"),
    "neither": (nifti(NEITHER), "sum to one"),
    "swapped scaling": (nifti(onehot(truth()), scl_slope=-1, scl_inter=0), "other than 0 and 1"),
    "complex": (nifti(onehot(truth(), "complex64")), "complex"),
    "cut": (nifti(onehot(truth()))[:-1], "ends before"),
    "text": (b"no volume", "text"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_result_that_does_not_pass_is_named_and_leaves_what_was_there(
    tmp_path: Path, what: str
) -> None:
    data, word = BAD[what]
    given = volume(tmp_path, nifti(ct()))
    result, target = put(tmp_path / "seg", data), put(tmp_path / "labels.nii.gz", b"older")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(BadResult, match=word) as caught:
        write_labels(result, given, target)
    assert str(tmp_path) not in caught.value.detail
    assert gzip.decompress(target.read_bytes()) == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_affine_within_a_thousandth_passes(tmp_path: Path) -> None:
    given = volume(tmp_path, nifti(ct()))
    result = put(tmp_path / "seg", nifti(onehot(truth()), moved(0.0008)))
    write_labels(result, given, tmp_path / "labels.nii.gz")
    assert np.array_equal(nib.load(tmp_path / "labels.nii.gz").affine, nib.load(given).affine)


def test_it_is_told_how_much_of_a_result_has_been_read(tmp_path: Path) -> None:
    labels = truth((64, 64, 90))  # 3 MB
    given = volume(tmp_path, nifti(ct(labels.shape), np.eye(4)))
    result = put(tmp_path / "seg", nifti(onehot(labels), np.eye(4)))
    by_labels: list[float] = []
    write_labels(result, given, tmp_path / "labels.nii.gz", on_part=by_labels.append)
    by_logits: list[float] = []
    check_logits(result, 10**6, on_part=by_logits.append)
    for parts in (by_labels, by_logits):
        assert len(parts) > 2
        assert parts == sorted(set(parts))
        assert (parts[0] > 0, parts[-1]) == (True, 1)


@pytest.mark.parametrize("check", [labels_checksum, partial(check_logits, most=10**6)])
def test_a_result_that_is_not_there_or_damaged_is_a_bad_result(
    tmp_path: Path, check: Callable[[Path], object]
) -> None:
    path = tmp_path / "output.nii.gz"
    with pytest.raises(BadResult, match=r"did not write output\.nii\.gz"):
        check(path)
    whole = gzip.compress(nifti(onehot(truth())))
    for size in (0, 5, 200, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BadResult):
            check(path)


@pytest.mark.parametrize("what", ["three axes", "three channels", "a score", "both", "neither"])
def test_what_is_not_one_hot_has_no_checksum(tmp_path: Path, what: str) -> None:
    with pytest.raises(BadResult):
        labels_checksum(put(tmp_path / "seg", BAD[what][0]))


def test_logits_are_any_finite_numbers_even_none(tmp_path: Path) -> None:
    scores = ct((9, 8, 7), "float32")
    check_logits(put(tmp_path / "output.nii.gz", nifti(scores, np.eye(4))), 10**6)
    check_logits(put(tmp_path / "output.nii.gz", nifti(scores[:0, :0, :0], np.eye(4))), 10**6)
    for value in (np.nan, np.inf):
        scores[8, 7, 6] = value
        with pytest.raises(BadResult, match="finite"):
            check_logits(put(tmp_path / "output.nii.gz", nifti(scores, np.eye(4))), 10**6)


GROWTH = """
import resource, sys
from pathlib import Path
from pfms.volumes.labels import write_labels
from pfms.volumes.preview import preview_png
folder = Path(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
for size in ("small", "large"):
    before = peak()
    write_labels(folder / f"{size}-seg", folder / f"{size}-ct", folder / "labels.nii.gz")
    labels = peak()
    preview_png(folder / f"{size}-ct", folder / "labels.nii.gz")
print(labels - before, peak() - labels)
"""


def test_memory_does_not_grow_with_the_labels_nor_with_their_picture(tmp_path: Path) -> None:
    for size, length in (("small", 128), ("large", 320)):
        dim = [length] * 3
        for kind, shape, background, item in (
            ("ct", [3, *dim, 1, 1, 1, 1], b"", 2),
            ("seg", [4, *dim, 2, 1, 1, 1], np.ones(length**3, "float32").tobytes(), 4),
        ):
            data = np.zeros((2,) * shape[0], "int16" if kind == "ct" else "float32")
            path = put(tmp_path / f"{size}-{kind}", nifti(data, dim=shape)[:352], packed=False)
            with path.open("ab") as file:
                file.write(background)
            voxels = int(np.prod(shape[1:]))
            os.truncate(path, 352 + voxels * item)
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, tmp_path],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    labels, picture = (int(growth) for growth in done.stdout.split())
    assert labels < 16 * 1024
    assert picture < 16 * 1024
