import gzip
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfms.errors import NotANifti, RequestError, TooLarge, TruncatedNifti, UnsupportedNifti
from pfms.volumes.admit import VolumeLimits
from tests.niftis import LIMITS, ORDERS, SECRET, Order, admit, ct, nifti, put, refused

OTHERS: dict[str, tuple[bytes, str]] = {
    "noise": (random.Random(1).randbytes(2000), "neither"),
    "zeros": (bytes(2000), "neither"),
    "analyze": (nifti(ct(), magic=b""), "Analyze"),
    "pair-1": (nifti(ct(), magic=b"ni1"), "pair"),
    "pair-2": (nifti(ct(), version=2, magic=b"ni2"), "pair"),
    "future": (nifti(ct(), magic=b"n+3"), "Analyze"),
    "text-mode": (nifti(ct(), version=2, eol_check=[10, 10, 26, 10]), "text mode"),
}


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("what", OTHERS)
def test_other_files_are_not_nifti_whatever_their_names(
    tmp_path: Path, what: str, packed: bool
) -> None:
    data, word = OTHERS[what]
    refused(put(tmp_path / "ct.nii.gz", data, packed=packed), NotANifti, LIMITS, word)


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
def test_an_empty_file_is_not_nifti(tmp_path: Path, packed: bool) -> None:
    refused(put(tmp_path / "ct.nii", b"", packed=packed), NotANifti, LIMITS, "empty")


def test_a_volume_gzipped_twice_is_not_nifti(tmp_path: Path) -> None:
    refused(put(tmp_path / "ct.nii.gz", gzip.compress(nifti(ct()))), NotANifti, LIMITS, "twice")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
def test_a_file_that_ends_early_is_truncated_wherever_it_ends(
    tmp_path: Path, version: int, packed: bool
) -> None:
    whole = nifti(ct(), version=version)
    for size in (4, 300, 347, 348, 351, 352, 500, 539, 540, 543, 544, len(whole) - 1):
        refused(put(tmp_path / "upload", whole[:size], packed=packed), TruncatedNifti)


def test_a_gzip_stream_that_ends_early_is_truncated_wherever_it_ends(tmp_path: Path) -> None:
    whole = gzip.compress(nifti(ct()))
    upload = tmp_path / "upload"
    for size in (2, 5, 10, 11, 100, len(whole) // 2, *range(len(whole) - 9, len(whole))):
        upload.write_bytes(whole[:size])
        refused(upload, TruncatedNifti)


def test_a_damaged_gzip_stream_is_truncated(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    whole = bytearray(gzip.compress(nifti(ct())))
    for at in (len(whole) - 8, len(whole) - 4):  # the checksum, the length
        whole[at] ^= 1
        upload.write_bytes(whole)
        refused(upload, TruncatedNifti, LIMITS, "gzip")
        whole[at] ^= 1


def test_a_volume_in_several_gzip_members_is_truncated_wherever_it_ends(tmp_path: Path) -> None:
    whole = nifti(ct())
    members = [gzip.compress(whole[at : at + 100]) for at in range(0, len(whole), 100)]
    upload = tmp_path / "upload"
    for number in range(1, len(members)):
        for end in (b"", b"\n", bytes(100), members[number][:-1], b"\x1f\x8b\x08"):
            upload.write_bytes(b"".join(members[:number]) + end)
            refused(upload, TruncatedNifti)
    upload.write_bytes(b"".join(members)[:-1])
    refused(upload, TruncatedNifti)


def test_members_without_end_are_not_followed(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    empty = gzip.compress(b"")
    upload.write_bytes(empty * 20_000)
    refused(upload, TruncatedNifti, LIMITS, "members")
    upload.write_bytes(gzip.compress(nifti(ct())) + empty * 80_000)
    refused(upload, TooLarge, LIMITS, "mebibyte")
    upload.write_bytes(gzip.compress(nifti(ct())) + empty * 9_000)
    admit(upload)


def test_more_than_a_mebibyte_after_a_gzip_stream_is_too_large(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    for tail in (b"x" * ((1 << 20) + 1), gzip.compress(b"x") + b"x" * (1 << 20)):
        upload.write_bytes(gzip.compress(nifti(ct())) + tail)
        refused(upload, TooLarge, LIMITS, "mebibyte")


def test_a_gzip_header_without_end_is_refused(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + SECRET * 100_000)  # the file's name
    refused(upload, TruncatedNifti, LIMITS, "gzip")


NO_QFORM = {"qform_code": 0}
SAME_WAY = {"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0]}
NOTHING = {"srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4}
# One field each (or a few), the outcome, and a word of the message.
WRONG: list[tuple[dict[str, Any], type[RequestError], str]] = [
    ({"dim": [2, 5, 42, 1, 1, 1, 1, 1]}, UnsupportedNifti, "2 axes"),
    ({"dim": [3, 5, 42, 1, 1, 1, 1, 1]}, UnsupportedNifti, "fewer than two"),
    ({"dim": [3, 0, 6, 7, 1, 1, 1, 1]}, UnsupportedNifti, "fewer than two"),
    ({"dim": [4, 5, 6, 7, 0, 1, 1, 1]}, UnsupportedNifti, "more than one"),
    ({"dim": [4, 5, 6, 1, 7, 1, 1, 1]}, UnsupportedNifti, "more than one"),
    ({"dim": [5, 5, 6, 7, 1, 3, 1, 1]}, UnsupportedNifti, "more than one"),
    ({"dim": [3, -5, -6, 7, 1, 1, 1, 1]}, UnsupportedNifti, "negative"),
    ({"dim": [3, -1, 1, 1, 1, 1, 1, 1], "glmin": 9}, UnsupportedNifti, "negative"),
    ({"dim": [3, 27307, 1, 6, 1, 1, 1, 1]}, UnsupportedNifti, "fewer than two"),
    ({"dim": [0, 5, 6, 7, 1, 1, 1, 1]}, UnsupportedNifti, "axes"),
    ({"dim": [8, 5, 6, 7, 1, 1, 1, 1]}, UnsupportedNifti, "axes"),
    ({"dim": [-3, 5, 6, 7, 1, 1, 1, 1]}, UnsupportedNifti, "axes"),
    ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, TooLarge, "unpacks"),
    ({"dim": [3, 5, 6, 8, 1, 1, 1, 1]}, TruncatedNifti, "5 x 6 x 8"),
    ({"datatype": 0}, UnsupportedNifti, "unknown type 0"),
    ({"datatype": 1}, UnsupportedNifti, "bits"),
    ({"datatype": 32}, UnsupportedNifti, "complex"),
    ({"datatype": 128}, UnsupportedNifti, "RGB"),
    ({"datatype": 1536}, UnsupportedNifti, "128-bit"),
    ({"datatype": 1792}, UnsupportedNifti, "complex"),
    ({"datatype": 2304}, UnsupportedNifti, "RGBA"),
    ({"datatype": -4}, UnsupportedNifti, "unknown type"),
    ({"datatype": 64}, TruncatedNifti, "8 bytes"),
    ({"vox_offset": 0}, UnsupportedNifti, "header's own end"),
    ({"vox_offset": 351}, UnsupportedNifti, "header's own end"),
    ({"vox_offset": -1e30}, UnsupportedNifti, "header's own end"),
    ({"vox_offset": np.nan}, UnsupportedNifti, "header's own end"),
    ({"vox_offset": np.inf}, UnsupportedNifti, "header's own end"),
    ({"vox_offset": -np.inf}, UnsupportedNifti, "header's own end"),
    ({"vox_offset": 353}, TruncatedNifti, "ends before"),
    ({"vox_offset": 1e6}, TruncatedNifti, "ends before"),
    ({"vox_offset": 1e30}, TooLarge, "unpacks"),
    ({"scl_slope": np.inf}, UnsupportedNifti, "scaling"),
    ({"scl_slope": 1, "scl_inter": np.inf}, UnsupportedNifti, "scaling"),
    ({"scl_slope": 1, "scl_inter": np.nan}, UnsupportedNifti, "scaling"),
    ({"scl_slope": 3e38}, UnsupportedNifti, "single precision"),
    ({"scl_slope": 1e36, "scl_inter": -1e38}, UnsupportedNifti, "single precision"),
    ({"srow_x": [np.nan] * 4, **NO_QFORM}, UnsupportedNifti, "affine is not finite"),
    ({"srow_z": [0, 0, 1, np.inf], **NO_QFORM}, UnsupportedNifti, "affine is not finite"),
    ({"srow_x": [np.nan] * 4, "quatern_b": np.nan}, UnsupportedNifti, "affine is not finite"),
    ({"srow_x": [0] * 4, **NO_QFORM}, UnsupportedNifti, "affine is singular"),
    ({**SAME_WAY, **NO_QFORM}, UnsupportedNifti, "affine is singular"),
    ({**NOTHING, **NO_QFORM}, UnsupportedNifti, "measure 0"),
    ({**NOTHING, "pixdim": [1, 0, 0, 0, 1, 1, 1, 1]}, UnsupportedNifti, "measure 0"),
    ({"srow_x": [3e38] * 4, **NO_QFORM}, UnsupportedNifti, "mm"),
    ({"srow_x": [1, 0, 0, 3e7], **NO_QFORM}, UnsupportedNifti, "kilometre"),
    ({"pixdim": [1, np.nan, 1, 1, 1, 1, 1, 1], "sform_code": 0}, UnsupportedNifti, "pixdim"),
    ({"pixdim": [1, 1, 0, 1, 1, 1, 1, 1], "sform_code": 0}, UnsupportedNifti, "pixdim"),
    ({"pixdim": [1, 1, 1, np.inf, 1, 1, 1, 1], "sform_code": 0}, UnsupportedNifti, "pixdim"),
    ({"sform_code": 0, "quatern_b": 0.9, "quatern_c": 0.9}, UnsupportedNifti, "not a rotation"),
    ({"sform_code": 0, "quatern_b": np.nan}, UnsupportedNifti, "affine is not finite"),
    ({"sform_code": 0, "qoffset_x": np.inf}, UnsupportedNifti, "affine is not finite"),
]


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize(("fields", "kind", "word"), WRONG, ids=[str(case[0]) for case in WRONG])
def test_a_header_that_cannot_be_right_is_refused_for_what_is_wrong(
    tmp_path: Path, fields: dict[str, Any], kind: type[RequestError], word: str, packed: bool
) -> None:
    upload = nifti(ct(), descrip=SECRET, aux_file=SECRET, **fields)
    refused(put(tmp_path / "upload", upload, packed=packed), kind, LIMITS, word)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"dim": [3, 30_000, 30_000, 30_000, 1, 1, 1, 1]}, TooLarge),
        ({"dim": [3, 2**62, 2**62, 2**62, 1, 1, 1, 1]}, UnsupportedNifti),
        ({"dim": [3, -(2**63), 2, 2, 1, 1, 1, 1]}, UnsupportedNifti),
        ({"dim": [3, 40_000, 2, 2, 1, 1, 1, 1]}, UnsupportedNifti),
        ({"dim": [2**40, 5, 6, 7, 1, 1, 1, 1]}, UnsupportedNifti),
        ({"vox_offset": 2**62}, TooLarge),
        ({"vox_offset": -(2**63)}, UnsupportedNifti),
        ({"srow_x": [1e200] * 4, **NO_QFORM}, UnsupportedNifti),
        ({"srow_x": [1e-300, 0, 0, 0], **NO_QFORM}, UnsupportedNifti),
        ({"scl_slope": 1e300}, UnsupportedNifti),
        ({"scl_slope": 1e300, "scl_inter": -1e300}, UnsupportedNifti),
        ({"intent_code": 3006}, UnsupportedNifti),
        ({"sizeof_hdr": 348}, NotANifti),
    ],
)
def test_the_wider_fields_of_nifti_2_are_refused_too(
    tmp_path: Path, fields: dict[str, Any], kind: type[RequestError]
) -> None:
    refused(put(tmp_path / "upload", nifti(ct(), version=2, **fields)), kind)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("at", [0, 104, 209])
def test_one_voxel_that_is_not_finite_is_one_too_many(
    tmp_path: Path, value: float, dtype: str, order: Order, at: int
) -> None:
    data = ct(dtype=dtype)
    data.flat[at] = value
    upload = put(tmp_path / "upload", nifti(data, order=order), packed=False)
    refused(upload, UnsupportedNifti, LIMITS, "not a finite number")


@pytest.mark.parametrize("value", [1e300, -3.5e38])
def test_a_voxel_beyond_single_precision_is_refused(tmp_path: Path, value: float) -> None:
    data = ct(dtype="float64")
    data[1, 2, 3] = value
    refused(put(tmp_path / "upload", nifti(data)), UnsupportedNifti, LIMITS, "single precision")


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
def test_more_than_a_mebibyte_after_the_voxels_is_too_large(tmp_path: Path, packed: bool) -> None:
    upload = nifti(ct(), tail=bytes((1 << 20) + 1))
    refused(put(tmp_path / "upload", upload, packed=packed), TooLarge, LIMITS, "mebibyte")


def test_a_gzip_bomb_is_not_unpacked_to_its_end(tmp_path: Path) -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    bomb = packer.compress(nifti(ct()) + bytes(4 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    upload = tmp_path / "upload"
    upload.write_bytes(bomb + b"\xff" * 1000)  # who reads so far finds the stream damaged
    refused(upload, TooLarge, LIMITS, "mebibyte")


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
def test_what_unpacks_to_more_than_the_limit_is_too_large(tmp_path: Path, packed: bool) -> None:
    whole = nifti(ct())
    upload = put(tmp_path / "upload", whole, packed=packed)
    refused(upload, TooLarge, VolumeLimits(len(whole) - 1, 10**9), f"{len(whole):,}")
    admit(upload, VolumeLimits(len(whole), 10**9))


def test_a_grid_too_large_for_any_machine_is_refused_with_a_hint_about_units(
    tmp_path: Path,
) -> None:
    upload = put(tmp_path / "upload", nifti(ct(), np.diag([700.0, 700, 3000, 1])))
    error = refused(upload, UnsupportedNifti, VolumeLimits(1 << 30, 10**9), "1868 x 2334 x 9001")
    assert "metres" in error.remedy
    assert "millimetres" in error.remedy
    admit(upload, VolumeLimits(1 << 30, 1868 * 2334 * 9001))


def test_metres_taken_for_millimetres_are_refused_with_a_hint_about_units(tmp_path: Path) -> None:
    upload = put(tmp_path / "upload", nifti(ct(), np.diag([0.0007, 0.0007, 0.003, 1])))
    refused(upload, UnsupportedNifti, LIMITS, "0.0007 x 0.0007 x 0.003", "metres")
