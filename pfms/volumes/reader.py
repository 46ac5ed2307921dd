"""Reads and writes the bytes of NIfTI files, once, in small pieces.

Every piece is small and the heavy work is done by ISA-L and numpy outside Python's lock, so a
thread that reads a volume does not hold up others.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from io import BufferedReader, BufferedWriter
from math import isfinite, prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from isal import isal_zlib
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from pfms.errors import TruncatedNifti, UnsupportedNifti
from pfms.volumes.gunzip import DamagedGzip, GzipStream
from pfms.volumes.not_nifti import LOOKED_AT, not_a_nifti
from pfms.volumes.sniff import nifti_version

PIECE = 1 << 20
"""Bytes that are processed at a time."""

TAIL = 1 << 20
"""Bytes after the last voxel that are ignored; some programs pad their files."""

OnPart = Callable[[float], None]
"""Gets the part of a file's values that has been read, 0 to 1, after each piece."""

# On a noisy CT level 1 is as fast as level 0 and a fifth smaller; 2 and 3 gain nothing more.
_LEVEL = 1
_GZIP_WITH_HEADER = 16 + 15  # zlib's `wbits`; this header holds neither name nor time

_SCALARS = {
    2: "uint8",
    4: "int16",
    8: "int32",
    16: "float32",
    64: "float64",
    256: "int8",
    512: "uint16",
    768: "uint32",
    1024: "int64",
    1280: "uint64",
}
_OTHER_TYPES = {
    1: "single bits",
    32: "complex numbers",
    128: "RGB colours",
    1536: "128-bit floats",
    1792: "complex numbers",
    2048: "complex numbers",
    2304: "RGBA colours",
}

# nibabel logs what it corrects in a header: of no interest in a server's log.
_quiet = logging.Logger("pfms.volumes.reader", level=logging.CRITICAL + 1)


class NiftiReader:
    """A single-file NIfTI, plain or gzipped, of either version and byte order; read forwards, once.

    Use it as a context manager. Opening reads no more than the header, so that `size` can be
    judged before a gzip stream is unpacked.

    Attributes:
        gzipped: Whether the file is a gzip stream.
        file_size: Bytes of the file as it is, gzipped or not.
        version: 1 or 2.
        header: The header as nibabel reads it, with nibabel's own corrections.
        stored: The header as it is in the file.
        shape: As many axes as the header has: 1 to 7, each at least 0.
        dtype: The stored type, in the file's byte order.
        offset: Bytes before the first voxel.
        size: Bytes up to the last voxel, `offset` included.
        extended: Whether header extensions follow the header.
        slope: A voxel is `stored * slope + intercept`; 1.0 if the header has no scaling.
        intercept: See `slope`; 0.0 if the header has no scaling.
    """

    def __init__(self, source: Path | BufferedReader, on_part: OnPart | None = None) -> None:
        """Open the file and read its header.

        Args:
            source: Its path, or the opened file, which is read from its start and stays open.
            on_part: Called while the values are read.

        Raises:
            NotANifti: It is something else.
            TruncatedNifti: It ends inside its header.
            UnsupportedNifti: Its voxels are not real numbers, or its header contradicts itself.
        """
        with ExitStack() as opened:
            if isinstance(source, Path):
                file = opened.enter_context(source.open("rb"))
            else:
                file = source
                file.seek(0)
            self.file_size = os.fstat(file.fileno()).st_size
            self.gzipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            self._stream = GzipStream(file) if self.gzipped else file
            self._read_header()
            self._left = prod(self.shape)  # values that have not been read
            self._on_part = on_part
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @property
    def scaled(self) -> bool:
        """Whether a voxel differs from its stored value."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    def extension(self) -> bytes:
        """Return what lies between the flag for header extensions and the voxels, at most `PIECE`.

        Call it before any voxel is read; empty if the flag says that there is nothing.
        """
        if not self.extended:
            return b""
        data = self._read(min(self._ahead, PIECE))
        self._ahead -= len(data)
        return data

    def values(self, count: int, row: int = 1) -> Iterator[NDArray[Any]]:
        """Read on through the stored values, unscaled, in file order (x runs fastest).

        Args:
            count: How many; a multiple of `row`.
            row: No piece ends in the middle of a row of this many values.

        Yields:
            Flat read-only arrays of about a mebibyte.

        Raises:
            TruncatedNifti: The file has fewer, or is damaged.
        """
        self._skip_to_voxels()
        row_bytes = row * self.dtype.itemsize
        left = count * self.dtype.itemsize
        step = max(1, PIECE // row_bytes) * row_bytes
        while left:
            wanted = min(step, left)
            piece = self._read(wanted)
            if len(piece) < wanted:
                raise self._too_short()
            left -= wanted
            yield np.frombuffer(piece, self.dtype)
            self._left -= wanted // self.dtype.itemsize
            if self._on_part is not None:
                self._on_part(1 - self._left / prod(self.shape))

    def tail(self) -> int:
        """Count the bytes that follow, up to `TAIL` + 1, and check gzip's checksum at the end.

        After the gzip member that holds the last voxel, whole members count unpacked and other
        bytes as they are in the file; damage among them does not concern the voxels.

        Raises:
            TruncatedNifti: The gzip member that holds the last voxel is damaged.
        """
        seen, members = 0, self._members
        try:
            while seen <= TAIL and (piece := self._stream.read1(TAIL + 1 - seen)):
                seen += len(piece)
        except DamagedGzip as error:
            if self._members == members:
                raise TruncatedNifti(str(error)) from error
        if isinstance(self._stream, GzipStream):
            seen += self._stream.stray
        return min(seen, TAIL + 1)

    @property
    def named(self) -> Sequence[int]:
        """Where the members begin, of those read so far, whose gzip headers have a name."""
        return self._stream.named if isinstance(self._stream, GzipStream) else ()

    @property
    def _members(self) -> int:
        return self._stream.members if isinstance(self._stream, GzipStream) else 0

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except DamagedGzip as error:
            raise TruncatedNifti(str(error)) from error

    def _available(self, size: int) -> bytes:
        """Read on, up to where the file ends or is damaged."""
        data = b""
        try:
            while len(data) < size and (piece := self._stream.read1(size - len(data))):
                data += piece
        except DamagedGzip:
            pass
        return data

    def _too_short(self) -> TruncatedNifti:
        return TruncatedNifti(
            f"The header says {' x '.join(map(str, self.shape))} voxels of "
            f"{self.dtype.itemsize} bytes, but the file ends before the last of them."
        )

    def _read_header(self) -> None:
        head = self._read(Nifti1Header.sizeof_hdr)
        if head[4:7] == b"n+2":
            head += self._read(Nifti2Header.sizeof_hdr - len(head))
        version = nifti_version(head)
        if version is None:
            raise not_a_nifti(head + self._available(LOOKED_AT))
        self.version = version
        kind: type[Nifti1Header] = Nifti2Header if self.version == 2 else Nifti1Header
        self.stored = kind(head[: kind.sizeof_hdr], check=False)
        self.header = self.stored.copy()
        axes = int(self.stored["dim"][0])  # nibabel knows the byte order by it
        if not 1 <= axes <= 7:
            raise UnsupportedNifti("Its header does not say how many axes it has, 1 to 7.")
        self.offset = self._voxel_offset()
        with np.errstate(all="ignore"):
            self.header.check_fix(logger=_quiet, error_level=logging.CRITICAL + 1)
        self.dtype = self._scalar_type()
        self.shape = self._shape()
        self.slope, self.intercept = self._scaling()
        self.size = self.offset + prod(self.shape) * self.dtype.itemsize
        flag = self._read(4)
        self.extended = flag[:1] > b"\0"
        self._ahead = self.offset - kind.sizeof_hdr - len(flag)  # bytes before the voxels

    def _voxel_offset(self) -> int:
        said = float(self.stored["vox_offset"])
        if not isfinite(said) or said < self.stored.single_vox_offset:
            raise UnsupportedNifti(
                "Its header puts the voxels before the header's own end.",
                "Write the file again with the program that made it, or with nibabel.",
            )
        return int(said)

    def _scalar_type(self) -> np.dtype[Any]:
        code = int(self.header["datatype"])
        if code not in _SCALARS:
            what = _OTHER_TYPES.get(code, f"of the unknown type {code}")
            raise UnsupportedNifti(
                f"Its voxels are {what}.",
                "Send a volume of whole numbers or of 32- or 64-bit floats.",
            )
        return np.dtype(_SCALARS[code]).newbyteorder(self.header.endianness)

    def _shape(self) -> tuple[int, ...]:
        axes = int(self.header["dim"][0])
        shape = tuple(int(length) for length in self.header["dim"][1 : axes + 1])
        if min(shape) < 0:
            raise UnsupportedNifti("Its header gives an axis a negative length.")
        if self.version == 2 and 3000 <= int(self.header["intent_code"]) < 3100:
            raise UnsupportedNifti("This is a CIFTI file, not a volume.")
        return shape

    def _scaling(self) -> tuple[float, float]:
        slope, inter = float(self.header["scl_slope"]), float(self.header["scl_inter"])
        if slope == 0 or slope != slope:  # both say: not scaled
            return 1.0, 0.0
        if not (isfinite(slope) and isfinite(inter)):
            raise UnsupportedNifti("Its scaling (scl_slope, scl_inter) is not finite.")
        return slope, inter

    def _skip_to_voxels(self) -> None:
        while self._ahead:
            skipped = len(self._read(min(self._ahead, PIECE)))
            if not skipped:
                raise self._too_short()
            self._ahead -= skipped


class GzipWriter:
    """Writes a gzip stream that holds neither a name nor a time: equal bytes give equal files."""

    def __init__(self, file: BufferedWriter) -> None:
        """Write to `file`, which stays open."""
        self._file = file
        self._deflate = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP_WITH_HEADER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._file.write(self._deflate.flush())

    def write(self, data: bytes | NDArray[Any]) -> None:
        """Compress and write."""
        self._file.write(self._deflate.compress(data))
