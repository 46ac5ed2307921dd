"""Volumes that lie, that unpack to far more than they weigh, or that end anywhere."""

import gzip
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tests.niftis import ct, nifti

REFUSED = frozenset({413, 422})
ANY = frozenset({202, 413, 422})  # strange, but whoever reads it may find a volume in it
GIB = 1 << 30
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Hostile:
    """A file, and the statuses that may answer it."""

    name: str
    content: bytes
    statuses: frozenset[int] = REFUSED


def packed(content: bytes, level: int = 1) -> bytes:
    """Gzipped, with no time in it."""
    return gzip.compress(content, level, mtime=0)


def deflated_zeros(size: int, before: bytes = b"") -> bytes:
    """A deflate stream of `before` and then zeros, whole mebibytes: a thousandth of their size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    # Nothing before a full flush is referred to after it, so every mebibyte has the same bytes.
    mebibyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + mebibyte * (size >> 20) + packer.flush()


@cache
def checksum_of_zeros(size: int, before: bytes = b"") -> int:
    checksum = zlib.crc32(before)
    for _ in range(size >> 20):
        checksum = zlib.crc32(bytes(1 << 20), checksum)
    return checksum


def zeros(size: int, before: bytes = b"") -> bytes:
    """A whole gzip member of `before` and then zeros."""
    end = struct.pack("<II", checksum_of_zeros(size, before), (len(before) + size) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08" + bytes(7) + deflated_zeros(size, before) + end


@cache
def gibibyte() -> bytes:
    """1 GiB of zeros, gzipped to 1 MB."""
    return zeros(GIB)


def volumes() -> Iterator[Hostile]:
    yield from _bombs()
    yield from _cuts()
    yield from _lies()
    yield from _gzip_lies()
    yield from _extensions()
    yield from _types()
    yield from _damaged()


def _bombs() -> Iterator[Hostile]:
    header = nifti(ct())
    huge = nifti(ct(), dim=[3, 1024, 1024, 512, 1, 1, 1, 1])[:352]
    small = zeros(64 << 20)
    yield Hostile("bomb: a gibibyte of zeros", gibibyte())
    yield Hostile("bomb: after the voxels", zeros(GIB, header))
    yield Hostile("bomb: voxels as promised, too many", zeros(GIB, huge))
    yield Hostile("bomb: in a bomb", packed(gibibyte(), 9))
    yield Hostile("bomb: in a bomb in a bomb", packed(packed(small, 9), 9))
    yield Hostile("bomb: in members", small * 16)
    yield Hostile("bomb: members after the volume", packed(header) + small * 16)
    yield Hostile("bomb: 100,000 empty members", packed(b"", 9) * 100_000)
    yield Hostile("bomb: empty members after", packed(header) + packed(b"") * 60_000, ANY)
    yield Hostile("bomb: members of a byte", b"".join(_one_by_one(header)), ANY)
    yield Hostile("bomb: zeros between members", packed(header) + bytes(32 << 20), ANY)
    twice = packed(header)[:-8] + packed(header)
    yield Hostile("bomb: a member that begins in another", twice)


def _one_by_one(content: bytes) -> Iterator[bytes]:
    for at in range(len(content)):
        yield packed(content[at : at + 1], 1)


def _cuts() -> Iterator[Hostile]:
    """Cut at every byte where something begins or ends."""
    for version, ends in ((1, (348, 352)), (2, (540, 544))):
        plain = nifti(ct(), version=version)
        gzipped = packed(plain)
        fields = {at for end in ends for at in (end - 1, end, end + 1)}
        for at in sorted({1, 3, 4, 5, 39, 40, 41, 107, 109, 343, *fields, len(plain) - 1}):
            yield Hostile(f"cut: nifti-{version} at {at}", plain[:at])
        tail = range(len(gzipped) - 9, len(gzipped))
        for at in sorted({1, 2, 3, 4, 9, 10, 11, 12, 18, 64, len(gzipped) // 2, *tail}):
            yield Hostile(f"cut: gzipped nifti-{version} at {at}", gzipped[:at])


_LIES: dict[str, dict[str, Any]] = {
    **{f"dim[0]={n}": {"dim": [n, 5, 6, 7, 1, 1, 1, 1]} for n in (0, -1, 8, 255, -32768, 32767)},
    "dims of 0": {"dim": [3, 0, 0, 0, 0, 0, 0, 0]},
    "7 dims of 0": {"dim": [7, 0, 0, 0, 0, 0, 0, 0]},
    "dims of -1": {"dim": [3, -1, -1, -1, 1, 1, 1, 1]},
    "dims of -32768": {"dim": [7] + [-32768] * 7},
    "dims of 32767": {"dim": [7] + [32767] * 7},
    "three dims of 32767": {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]},
    "two negative dims": {"dim": [3, -5, -6, 7, 1, 1, 1, 1]},
    "1 x 1 x 1": {"dim": [3, 1, 1, 1, 1, 1, 1, 1]},
    "2 axes": {"dim": [2, 14, 15, 1, 1, 1, 1, 1]},
    "many volumes": {"dim": [4, 5, 6, 1, 7, 1, 1, 1]},
    "FreeSurfer's long axis": {"dim": [3, -1, 1, 1, 1, 1, 1, 1], "glmin": 2**31 - 1},
    "scl_slope inf": {"scl_slope": INF},
    "scl_slope -inf": {"scl_slope": -INF},
    "scl_slope 3e38": {"scl_slope": 3e38},
    "scl_inter NaN": {"scl_slope": 1, "scl_inter": NAN},
    "scl_inter inf": {"scl_slope": 1, "scl_inter": INF},
    "scl_inter 3.4e38": {"scl_slope": 1e36, "scl_inter": 3.4e38},
    **{f"vox_offset {v:g}": {"vox_offset": v} for v in (0, 1, -1, -352, 347, 351, 353, 1e6, 1e9)},
    **{f"vox_offset {v:g}": {"vox_offset": v} for v in (1e18, 1e30, 3e38, -3e38, INF, -INF, NAN)},
}
_NO_QFORM = {"qform_code": 0}
_PLACES: dict[str, dict[str, Any]] = {
    "srow NaN": {"srow_x": [NAN] * 4, **_NO_QFORM},
    "srow inf": {"srow_z": [0, 0, INF, 0], **_NO_QFORM},
    "srow 0": {"srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4, **_NO_QFORM},
    "srow 3e38": {"srow_x": [3e38] * 4, **_NO_QFORM},
    "srow 1e-38": {"srow_x": [1e-38, 0, 0, 0], **_NO_QFORM},
    "origin far away": {"srow_x": [1, 0, 0, 1e30], **_NO_QFORM},
    "origin NaN": {"srow_x": [1, 0, 0, NAN], **_NO_QFORM},
    "pixdim 0": {"pixdim": [1] + [0] * 7, "sform_code": 0},
    "pixdim NaN": {"pixdim": [NAN] * 8, "sform_code": 0},
    "pixdim inf": {"pixdim": [1, INF, INF, INF, 1, 1, 1, 1], "sform_code": 0},
    "pixdim 1e-30": {"pixdim": [1, 1e-30, 1e-30, 1e-30, 1, 1, 1, 1], "sform_code": 0},
    "pixdim 1e30": {"pixdim": [1, 1e30, 1e30, 1e30, 1, 1, 1, 1], "sform_code": 0},
    "grid of a terabyte": {"pixdim": [1, 9e3, 9e3, 9e3, 1, 1, 1, 1], "sform_code": 0},
    "quatern NaN": {"quatern_b": NAN, "sform_code": 0},
    "quatern 3e38": {"quatern_b": 3e38, "quatern_c": 3e38, "sform_code": 0},
    "qoffset inf": {"qoffset_x": INF, "sform_code": 0},
}
_HARMLESS: dict[str, dict[str, Any]] = {
    "scl_slope 0": {"scl_slope": 0, "scl_inter": NAN},
    "scl_slope NaN": {"scl_slope": NAN, "scl_inter": NAN},
    "negative pixdim": {"pixdim": [-1, -3, -3, -3, 1, 1, 1, 1], "sform_code": 0},
    "codes of -1": {"sform_code": -1, "qform_code": -1},
    "codes of 32767": {"sform_code": 32767, "qform_code": 32767},
    "bitpix 1": {"bitpix": 1},
    "bitpix -32768": {"bitpix": -32768},
    "units of 255": {"xyzt_units": 255},
    "slices everywhere": {"slice_start": -5, "slice_end": 32767, "slice_code": 99, "dim_info": 255},
    "cal_max NaN": {"cal_max": NAN, "cal_min": INF, "toffset": NAN},
    "intent_code -1": {"intent_code": -1},
}
_LIES_2: dict[str, dict[str, Any]] = {
    "dims of 2**62": {"dim": [3, 2**62, 2**62, 2**62, 1, 1, 1, 1]},
    "dims of 2**63-1, 7": {"dim": [7] + [2**63 - 1] * 7},
    "dims of -2**63": {"dim": [3] + [-(2**63)] * 7},
    "dim[0]=2**40": {"dim": [2**40, 5, 6, 7, 1, 1, 1, 1]},
    "vox_offset 2**62": {"vox_offset": 2**62},
    "vox_offset -2**63": {"vox_offset": -(2**63)},
    "srow 1e300": {"srow_x": [1e300] * 4, **_NO_QFORM},
    "slope 1e308": {"scl_slope": 1e308, "scl_inter": -1e308},
    "CIFTI": {"intent_code": 3006},
}


def _lies() -> Iterator[Hostile]:
    for name, fields in (_LIES | _PLACES).items():
        yield Hostile(f"lie: {name}", nifti(ct(), **fields))
        yield Hostile(f"lie, packed: {name}", packed(nifti(ct(), **fields), 1))
    for name, fields in _PLACES.items():
        yield Hostile(f"lie, big-endian: {name}", nifti(ct(), order=">", **fields))
    for name, fields in _HARMLESS.items():
        yield Hostile(f"odd: {name}", nifti(ct(), **fields), ANY)
    for name, fields in _LIES_2.items():
        yield Hostile(f"lie in nifti-2: {name}", nifti(ct(), version=2, **fields))
    whole = nifti(ct())
    for size in (0, 1, 347, 349, 540, 2**31 - 1, 0xFFFFFFFF):
        yield Hostile(f"lie: sizeof_hdr {size}", struct.pack("<I", size) + whole[4:], ANY)
    for magic in (b"", b"n+0", b"n+2", b"n+9", b"ni1", b"N+1", b"n+1x", b"\xff" * 4):
        yield Hostile(f"lie: magic {magic!r}", nifti(ct(), magic=magic[:4]), ANY)
    swapped = nifti(ct(), order=">")
    yield Hostile("endianness: dims swapped alone", whole[:40] + swapped[40:56] + whole[56:])
    yield Hostile("endianness: all but dims", swapped[:40] + whole[40:56] + swapped[56:])
    yield Hostile("endianness: sizeof_hdr alone", swapped[:4] + whole[4:], ANY)
    yield Hostile("analyze", nifti(ct(), magic=b""))
    yield Hostile("analyze of zeros", struct.pack("<i", 348) + bytes(344))
    yield Hostile(
        "nifti-1's header, nifti-2's magic", whole[:4] + b"n+2\0\r\n\x1a\n" + whole[12:], ANY
    )
    two = nifti(ct(), version=2)
    yield Hostile("nifti-2 with nifti-1's size", struct.pack("<i", 348) + two[4:])
    yield Hostile("nifti-2, line ends changed", two[:8] + b"\n\n\x1a\n" + two[12:])
    yield Hostile("both versions", two[:344] + b"n+1\0" + two[348:])
    nan, inf = ct(dtype="float32"), ct(dtype="float64")
    nan[2, 2, 2], inf[4, 5, 6] = NAN, INF
    yield Hostile("one voxel is NaN", nifti(nan))
    yield Hostile("the last voxel is infinite", nifti(inf))
    yield Hostile("voxels of 1e300", nifti(np.full((5, 6, 7), 1e300)))


def _gzip_lies() -> Iterator[Hostile]:
    whole = packed(nifti(ct()), 1)
    for flags, what in ((8, "name"), (16, "comment"), (4, "extra field")):
        head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6)
        yield Hostile(f"gzip: a {what} without end", head + b"\xff" * (4 << 20))
        yield Hostile(f"gzip: a long {what}", head + b"A" * 70_000 + b"\0" + whole[10:], ANY)
    yield Hostile("gzip: every flag", whole[:3] + b"\xff" + whole[4:])
    yield Hostile("gzip: reserved flags", whole[:3] + b"\xe0" + whole[4:], ANY)
    yield Hostile(
        "gzip: a header's checksum that is wrong",
        whole[:3] + b"\2" + whole[4:10] + b"xx" + whole[10:],
    )
    yield Hostile("gzip: an unknown method", whole[:2] + b"\7" + whole[3:])
    yield Hostile("gzip: stored blocks without end", whole[:10] + b"\0\0\0\xff\xff" * 200_000)
    yield Hostile("gzip: a block type that is not", whole[:10] + b"\7" * 5000)
    yield Hostile("gzip: refers to before its start", whole[:10] + b"\x63\x00\x92" * 100)
    yield Hostile("gzip: a wrong checksum", whole[:-8] + b"\0\0\0\0" + whole[-4:])
    yield Hostile("gzip: a wrong length", whole[:-4] + b"\xff\xff\xff\xff")
    yield Hostile("gzip: extra field, then cut", b"\x1f\x8b\x08\x04" + bytes(6) + b"\xff\xff")
    yield Hostile("gzip: noise after it", whole + random.Random(3).randbytes(2 << 20))
    yield Hostile("zlib, not gzip", zlib.compress(nifti(ct())))


def _extensions() -> Iterator[Hostile]:
    def extended(size: int, code: int, content: bytes = b"", flag: bytes = b"\1\0\0\0") -> bytes:
        return nifti(ct(), between=flag + struct.pack("<ii", size, code) + content)

    for size in (0, 1, 7, 8, 15, 16, 17, -1, -16, 2**31 - 1, -(2**31)):
        yield Hostile(f"extension: of {size} bytes", extended(size, 6, bytes(8)), ANY)
    yield Hostile(
        "extension: over the voxels",
        nifti(ct(), vox_offset=352, between=b"\1\0\0\0" + b"\xff" * 64),
        ANY,
    )
    yield Hostile("extension: a flag, nothing behind it", nifti(ct(), between=b"\1\0\0\0"), ANY)
    yield Hostile("extension: 64 MiB", zeros(0, extended((64 << 20) + 16, 6, bytes(64 << 20))), ANY)
    yield Hostile(
        "extension: thousands",
        nifti(ct(), between=b"\1\0\0\0" + struct.pack("<iiq", 16, 6, 0) * 60_000),
        ANY,
    )
    note = b"pfms: pixdim of the upload: "
    for said in (
        b"nan nan nan",
        b"1e999 -1e999 0",
        b"a b c",
        b"1 2",
        b"\xff" * 20,
        b"9" * 400 + b" 1 1",
    ):
        size = -(-(8 + len(note + said)) // 16) * 16
        padded = (note + said).ljust(size - 8, b"\0")
        yield Hostile(f"extension: our own note, {said[:12]!r}", extended(size, 6, padded), ANY)


def _types() -> Iterator[Hostile]:
    """Every type that is not one real number a voxel."""
    named = {1: "bits", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128"}
    named |= {2048: "complex256", 2304: "RGBA", 0: "unknown", 255: "all", 3: "none", -4: "negative"}
    for code, name in named.items():
        yield Hostile(f"type: {name}", nifti(ct(), datatype=code, tail=bytes(8000)))
        yield Hostile(f"type, nifti-2: {name}", nifti(ct(), version=2, datatype=code))


def _damaged() -> Iterator[Hostile]:
    """Bits flipped, always the same ones."""
    chance = random.Random(8)
    plain = nifti(ct())
    gzipped = packed(plain)
    for number in range(12):
        header = bytearray(plain)
        for _ in range(4):
            header[chance.randrange(352)] ^= 1 << chance.randrange(8)
        yield Hostile(f"damaged header {number}", bytes(header), ANY)
        stream = bytearray(gzipped)
        stream[chance.randrange(10, len(gzipped) - 8)] ^= 1 << chance.randrange(8)
        yield Hostile(f"damaged stream {number}", bytes(stream))
    yield Hostile("noise", chance.randbytes(100_000))
    yield Hostile("noise behind gzip's mark", b"\x1f\x8b\x08\0" + chance.randbytes(100_000))
    yield Hostile("noise behind a header", plain[:352] + chance.randbytes(10), ANY)
