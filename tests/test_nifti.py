import gzip
import json
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

from pfms.errors import RequestError
from tests.niftis import OBLIQUE, ORDERS, SECRET, Order, admit, ct, nifti, put

SHARED = Path(__file__).parents[2] / "shared" / "data"
TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
TYPES += ["float32", "float64"]

# --- accepted volumes --------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize(("version", "order"), list(product((1, 2), ORDERS)))
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_version_and_byte_order_arrives_as_it_was(
    tmp_path: Path, dtype: str, version: int, order: Order, packed: bool
) -> None:
    data = ct(dtype=dtype)
    upload = put(tmp_path / "upload", nifti(data, version=version, order=order), packed=packed)
    facts, target = admit(upload)
    image = nib.load(target)
    assert np.array_equal(np.asarray(image.dataobj), data)
    assert image.header.endianness == order
    assert type(image) is (nib.Nifti1Image if version == 1 else nib.Nifti2Image)
    assert (facts.shape, facts.dtype, facts.nifti_version) == (data.shape, dtype, version)
    assert (facts.minimum, facts.maximum) == (data.min(), data.max())
    assert np.array_equal(facts.affine, image.affine)
    assert facts.spacing == pytest.approx((0.8, 0.9, 2.5), abs=1e-3)


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_the_orientation_is_that_of_nibabel(tmp_path: Path, axes: tuple[int, ...]) -> None:
    for signs in product((1.0, -1.0), repeat=3):
        affine = np.eye(4)
        affine[:3, :3] = (np.diag([0.7, 0.8, 3.0]) * signs)[:, axes]
        facts, target = admit(put(tmp_path / "upload", nifti(ct(), affine)))
        assert facts.orientation == "".join(aff2axcodes(nib.load(target).affine))
        assert facts.spacing == pytest.approx(np.array([0.7, 0.8, 3.0])[list(axes)])


@pytest.mark.parametrize(
    ("sform_code", "qform_code"), [(0, 1), (0, 0), (4, 0), (2, 3), (77, 1), (-1, 0)]
)
def test_the_affine_is_the_one_that_nibabel_takes(
    tmp_path: Path, sform_code: int, qform_code: int
) -> None:
    upload = nifti(ct(), sform_code=sform_code, qform_code=qform_code)
    facts, target = admit(put(tmp_path / "upload", upload))
    assert np.array_equal(facts.affine, nib.load(target).affine)


def test_a_scaled_volume_is_described_in_its_own_units(tmp_path: Path) -> None:
    data = ct(dtype="uint16")
    upload = nifti(data, scl_slope=-0.5, scl_inter=-24)
    facts, target = admit(put(tmp_path / "upload", upload, packed=False))
    image = np.asarray(nib.load(target).dataobj)
    assert (facts.minimum, facts.maximum) == (image.min(), image.max())


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_an_unset_slope_means_unscaled_whatever_the_intercept(tmp_path: Path, slope: float) -> None:
    facts, _ = admit(put(tmp_path / "upload", nifti(ct(), scl_slope=slope, scl_inter=np.inf)))
    assert facts.minimum == ct().min()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("more", [(1,), (1, 1), (1, 1, 1, 1)])
def test_trailing_axes_of_length_one_are_dropped(
    tmp_path: Path, version: int, more: tuple[int, ...]
) -> None:
    data = ct()
    upload = nifti(data.reshape(*data.shape, *more), version=version, order=">")
    facts, target = admit(put(tmp_path / "upload", upload))
    image = nib.load(target)
    assert image.shape == facts.shape == data.shape
    assert np.array_equal(np.asarray(image.dataobj), data)
    assert np.allclose(image.affine, OBLIQUE, atol=1e-5)


def test_a_clean_gzipped_volume_is_moved_and_not_packed_again(tmp_path: Path) -> None:
    upload = put(tmp_path / "upload", nifti(ct()))
    before = (upload.stat().st_ino, upload.read_bytes())
    _, target = admit(upload)
    assert not upload.exists()
    assert (target.stat().st_ino, target.read_bytes()) == before


def test_the_copy_names_no_file_and_no_time(tmp_path: Path) -> None:
    _, target = admit(put(tmp_path / "upload", nifti(ct()), packed=False))
    flags, time = struct.unpack("<xxxBI", target.read_bytes()[:8])
    assert (flags, time) == (0, 0)


def named_member(content: bytes, name: bytes, *, all_fields: bool = False) -> bytes:
    """A gzip member whose header names a file; with `all_fields` also the rest it may have."""
    plain = gzip.compress(content, mtime=0)
    if not all_fields:
        return plain[:3] + b"\x08" + plain[4:10] + name + b"\0" + plain[10:]
    extra, comment = b"BC\2\0ab", name + b" as a comment\0"
    head = plain[:3] + b"\x1e" + plain[4:10] + b"\6\0" + extra + name + b"\0" + comment
    return head + struct.pack("<H", zlib.crc32(head) & 0xFFFF) + plain[10:]


@pytest.mark.parametrize("all_fields", [False, True])
def test_the_file_name_that_gzip_wrote_is_cleared_without_packing_again(
    tmp_path: Path, all_fields: bool
) -> None:
    whole, name = nifti(ct()), b"DOE^JANE.nii"
    upload = tmp_path / "upload"
    parts = (whole[:500], whole[500:])
    sent = b"".join(named_member(part, name, all_fields=all_fields) for part in parts)
    upload.write_bytes(sent)
    before = upload.stat()
    _, target = admit(upload)
    assert (target.stat().st_ino, target.stat().st_size) == (before.st_ino, before.st_size)
    assert b"DOE" not in target.read_bytes()
    assert gzip.decompress(target.read_bytes()) == whole
    subprocess.run(["gzip", "-t", target], check=True)


@pytest.mark.parametrize("name", [b"", b"DOE^JANE" * 10_000])
def test_a_gzip_name_of_an_odd_length_costs_a_copy(tmp_path: Path, name: bytes) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(named_member(nifti(ct()), name))
    _, target = admit(upload)
    assert b"DOE" not in target.read_bytes()
    assert gzip.decompress(target.read_bytes()) == nifti(ct())


def test_gzip_of_several_members_is_one_volume(tmp_path: Path) -> None:
    whole = nifti(ct())
    members = [gzip.compress(whole[at : at + 100]) for at in range(0, len(whole), 100)]
    upload = tmp_path / "upload"
    upload.write_bytes(b"".join(members) + bytes(512))  # tape drives pad with zeros
    _, target = admit(upload)
    assert np.array_equal(np.asarray(nib.load(target).dataobj), ct())


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("size", [1, 100_000, 1 << 20])
def test_a_little_after_the_voxels_is_left_out_of_the_copy(
    tmp_path: Path, packed: bool, size: int
) -> None:
    whole = nifti(ct())
    facts, target = admit(put(tmp_path / "upload", whole + b"x" * size, packed=packed))
    assert gzip.decompress(target.read_bytes()) == whole
    assert [("after the last voxel" in text) for text in facts.warnings] == [True]


MEMBER = gzip.compress(nifti(ct()))
AFTER: dict[str, bytes] = {
    "a newline": b"\n",
    "text": b"uploaded by hand\r\n",
    "a checksum": b"ab" * 32 + b"  ct.nii.gz\n",
    "the next boundary of a form": b"\r\n--boundary--\r\n",
    "noise": random.Random(1).randbytes(5000),
    "zeros and text": bytes(300_000) + b"end",
    "half of a mark": b"\x1f",
    "a mark": b"\x1f\x8b",
    "a member of another kind": b"\x1f\x8b\x07" + bytes(100),
    "a member that ends early": MEMBER[:200],
    "a member with a wrong checksum": MEMBER[:-8] + bytes(8),
    "a whole member": gzip.compress(b"a file of its own"),
    "a whole member and text": gzip.compress(b"a file of its own") + b"\n",
    "a mebibyte": b"x" * (1 << 20),
}


@pytest.mark.parametrize("what", AFTER)
def test_what_follows_a_whole_gzip_stream_is_left_out_with_a_warning(
    tmp_path: Path, what: str
) -> None:
    upload = tmp_path / "upload"
    for members in (MEMBER, _in_members(nifti(ct()), 100), MEMBER + gzip.compress(b"")):
        upload.write_bytes(members + AFTER[what])
        facts, target = admit(upload)
        assert gzip.decompress(target.read_bytes()) == nifti(ct())
        assert [("after the last voxel" in text) for text in facts.warnings] == [True]
        target.unlink()


def test_padding_with_zeros_is_a_part_of_gzip_and_needs_no_warning(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(MEMBER + bytes(3 << 20))
    facts, target = admit(upload)
    assert facts.warnings == ()
    assert np.array_equal(np.asarray(nib.load(target).dataobj), ct())


def _in_members(whole: bytes, size: int) -> bytes:
    return b"".join(gzip.compress(whole[at : at + size], 1) for at in range(0, len(whole), size))


@pytest.mark.parametrize("size", [97, 4096, 65_280])
def test_gzip_members_of_any_size_with_padding_between_are_one_volume(
    tmp_path: Path, size: int
) -> None:
    data = ct((60, 61, 62))
    upload = tmp_path / "upload"
    upload.write_bytes(_in_members(nifti(data)[:1000], 97) + bytes(131_072))
    with upload.open("ab") as file:
        file.write(_in_members(nifti(data)[1000:], size) + gzip.compress(b""))  # as bgzip ends
    _, target = admit(upload)
    assert np.array_equal(np.asarray(nib.load(target).dataobj), data)


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("version", [1, 2])
def test_header_extensions_even_broken_ones_stay_behind(
    tmp_path: Path, version: int, packed: bool
) -> None:
    extension = b"\1\0\0\0" + struct.pack("<ii", 7777, 4) + SECRET.ljust(88, b"\xff")
    upload = nifti(ct(), version=version, between=extension)
    _, target = admit(put(tmp_path / "upload", upload, packed=packed))
    assert gzip.decompress(target.read_bytes())[-ct().nbytes :] == ct().tobytes(order="F")
    assert SECRET not in gzip.decompress(target.read_bytes())
    assert np.array_equal(np.asarray(nib.load(target).dataobj), ct())


@pytest.mark.parametrize("fields", [{"bitpix": 99}, {"sizeof_hdr": 0}, {"pixdim": [0] + [1] * 7}])
def test_what_nibabel_corrects_is_not_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    facts, target = admit(put(tmp_path / "upload", nifti(ct(), affine, **fields)))
    assert nib.load(target).shape == facts.shape


@pytest.mark.parametrize(
    ("data", "warned"),
    [
        (np.full((4, 4, 4), -100, "int16"), True),
        (np.full((4, 4, 4), -101, "int16"), False),
        (ct(dtype="uint8"), True),
    ],
)
def test_a_volume_without_air_is_accepted_with_a_warning(
    tmp_path: Path, data: Any, warned: bool
) -> None:
    facts, _ = admit(put(tmp_path / "upload", nifti(data)))
    assert [("Hounsfield" in text) for text in facts.warnings] == [True] * warned


def test_a_volume_that_does_not_say_where_it_lies_is_accepted_with_a_warning(
    tmp_path: Path,
) -> None:
    facts, _ = admit(put(tmp_path / "upload", nifti(ct(), sform_code=0, qform_code=0)))
    assert "says nothing about the volume's orientation" in facts.warnings[0]


def test_two_geometries_are_accepted_with_a_warning(tmp_path: Path) -> None:
    upload = nifti(ct(), srow_x=[2, 0, 0, 0], srow_y=[0, 2, 0, 0], srow_z=[0, 0, 2, 0])
    facts, target = admit(put(tmp_path / "upload", upload))
    assert np.array_equal(facts.affine, nib.load(target).affine)
    assert "the plugin uses the qform" in facts.warnings[0]


def test_facts_hold_no_text_of_the_header_and_are_json(tmp_path: Path) -> None:
    text: dict[str, Any] = {"descrip": SECRET, "aux_file": SECRET, "intent_name": SECRET}
    facts, _ = admit(put(tmp_path / "upload", nifti(ct(), **text)))
    told = json.dumps(facts.to_dict())
    assert SECRET.decode() not in told
    assert json.loads(told)["shape"] == [5, 6, 7]


# --- whatever comes ----------------------------------------------------------------------------

Mutate = Callable[[bytearray, random.Random], None]


def _bytes(header: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 4)):
        header[dice.randrange(len(header))] = dice.randrange(256)


def _words(header: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(38, 348) & ~1
        word = dice.choice([b"\0\0", b"\xff\xff", b"\xff\x7f", b"\0\x80", b"\x80\x7f", b"\1\0"])
        header[at : at + 2] = word


def _floats(header: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 3)):
        at = dice.choice([*range(76, 124, 4), *range(256, 328, 4)])
        value = dice.choice([0.0, -1.0, 1e-30, 3e38, 1e7, float("nan"), float("inf"), 0.5, 352.0])
        header[at : at + 4] = struct.pack(dice.choice(["<f", ">f"]), value)


@pytest.mark.parametrize("mutate", [_bytes, _words, _floats])
@pytest.mark.parametrize("version", [1, 2])
def test_whatever_the_header_says_it_is_refused_or_nibabel_can_load_it(
    tmp_path: Path, mutate: Mutate, version: int
) -> None:
    dice = random.Random(f"{mutate.__name__}{version}")
    taken = 0
    for _ in range(100):
        affine = dice.choice([OBLIQUE, np.diag([0.8, 0.8, 2.5, 1])])
        sform, qform = dice.choice([0, 1]), dice.choice([0, 1])
        order = dice.choice(ORDERS)
        whole = nifti(
            ct(), affine, version=version, order=order, sform_code=sform, qform_code=qform
        )
        size = 352 if version == 1 else 544
        header = bytearray(whole[:size])
        mutate(header, dice)
        upload = put(
            tmp_path / "upload",
            bytes(header) + whole[size:] + bytes(900),
            packed=dice.random() < 0.5,
        )
        try:
            facts, target = admit(upload)
        except RequestError:
            assert not (tmp_path / "input.nii.gz").exists()
            continue
        taken += 1
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            image = nib.load(target)
            voxels = np.asarray(image.dataobj).astype(np.float32)
        assert image.shape == facts.shape
        assert np.isfinite(voxels).all()
        assert np.array_equal(image.affine, facts.affine)
        assert np.isclose(voxels.min(), facts.minimum)
        target.unlink()
    assert 10 < taken < 100


def test_whatever_becomes_of_a_gzip_stream_it_is_refused_or_whole(tmp_path: Path) -> None:
    dice = random.Random(7)
    whole = gzip.compress(nifti(ct()))
    upload = tmp_path / "upload"
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            damaged[dice.randrange(2, len(damaged))] ^= 1 << dice.randrange(8)
        upload.write_bytes(damaged)
        try:
            _, target = admit(upload)
        except RequestError:
            continue
        assert np.array_equal(np.asarray(nib.load(target).dataobj), ct())
        target.unlink()


# --- how much it costs -------------------------------------------------------------------------

GROWTH = """
import resource, sys
from pathlib import Path
from pfms.volumes.admit import VolumeLimits, admit_volume
folder = Path(sys.argv[1])
limits = VolumeLimits(1 << 40, 1 << 40)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
admit_volume(folder / "small", folder / "small.nii.gz", limits)
before = peak()
admit_volume(folder / "plain", folder / "first.nii.gz", limits)
admit_volume(folder / "first.nii.gz", folder / "second.nii.gz", limits)
print(peak() - before, "torch" in sys.modules, "scipy.ndimage" in sys.modules)
"""


def test_memory_does_not_grow_with_the_volume(tmp_path: Path) -> None:
    header = nifti(np.zeros((2, 2, 2), "int16"), dim=[3, 512, 512, 512, 1, 1, 1, 1])[:352]
    mebibyte = ct((64, 64, 128)).tobytes()
    with (tmp_path / "plain").open("wb") as plain:
        plain.write(header)
        for _ in range(256):
            plain.write(mebibyte)
    put(tmp_path / "small", nifti(ct((64, 64, 64))), packed=False)
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, tmp_path],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    growth, torch, scipy = done.stdout.split()
    assert int(growth) < 16 * 1024
    assert (torch, scipy) == ("False", "False")


# --- against what it stands for ----------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="there is no folder ../shared/data")
def test_a_real_ct_is_accepted_without_a_warning(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes((SHARED / "ct_abdomen_3mm.nii.gz").read_bytes())
    facts, _ = admit(upload)
    assert facts.shape == (122, 101, 30)
    assert facts.spacing == (3.0, 3.0, 3.0)
    assert (facts.orientation, facts.dtype, facts.warnings) == ("RAS", "int16", ())
    assert (facts.minimum, facts.maximum) == (-1100, 1207)
