"""Reads a gzip file member by member, so that trailing bytes can be told from damage."""

import os
from typing import BinaryIO

from isal import igzip_lib

_INPUT = 128 << 10
# Each member costs time, however little is in it: bgzip puts 64 KiB into one, pigz 128.
_FREE_MEMBERS, _LEAST_IN_MEMBER = 10_000, 16 << 10
_MARK = b"\x1f\x8b"
_ERROR: type[Exception] = igzip_lib.error  # type: ignore[assignment]  # a class, whatever its stub says


class DamagedGzip(Exception):
    """A member ends early, its contents or its checksum are wrong, or there are far too many."""


class GzipStream:
    """The contents of a gzip file's members, one after the other; read forwards, once.

    Zeros between members and after the last one are padding, as for gzip itself. Anything else
    that is not a member ends the stream.

    Attributes:
        members: How many have been started.
        stray: Bytes of the file that are not part of a whole member, as far as is known: from the
            first byte after the members, or from the start of a damaged one, to the file's end.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read from `file`, which begins with gzip's mark."""
        self._file = file
        self._input = b""  # read from the file and not unpacked yet
        self._start = 0  # of the member that is being read
        self._unpacker: igzip_lib.IgzipDecompressor | None = None
        self._ended = False
        self._unpacked = 0
        self.members = 0
        self.stray = 0

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer at the end.

        Raises:
            DamagedGzip: The stream goes wrong before that.
        """
        pieces = [piece := self.read1(size)]
        while piece and (size := size - len(piece)):
            pieces.append(piece := self.read1(size))
        return b"".join(pieces) if len(pieces) > 1 else piece

    def read1(self, size: int) -> bytes:
        """Return what is available, at least one byte and at most `size`; nothing at the end.

        Raises:
            DamagedGzip: The stream goes wrong here.
        """
        while unpacker := self._unpacker or self._begin_member():
            if unpacker.needs_input and not self._input:
                self._input = self._file.read(_INPUT)
                if not self._input:
                    raise self._damaged()
            data, self._input = self._input, b""
            try:
                piece = unpacker.decompress(data, size)
            except _ERROR as error:
                raise self._damaged() from error
            if unpacker.eof:
                self._input = unpacker.unused_data
                self._unpacker = None
            if piece:
                self._unpacked += len(piece)
                return piece
        return b""

    def _begin_member(self) -> igzip_lib.IgzipDecompressor | None:
        if self._ended:
            return None
        self._input = self._input.lstrip(b"\0")
        while len(self._input) < len(_MARK) and (more := self._file.read(_INPUT)):
            self._input = (self._input + more).lstrip(b"\0")
        self._start = self._file.tell() - len(self._input)
        if not self._input.startswith(_MARK):
            self._end()
            return None
        self.members += 1
        if self.members > _FREE_MEMBERS + self._unpacked // _LEAST_IN_MEMBER:
            self._end()
            raise DamagedGzip("The gzip stream consists of more members than a writer would make.")
        self._unpacker = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        return self._unpacker

    def _damaged(self) -> DamagedGzip:
        self._end()
        return DamagedGzip("The gzip stream is damaged or ends too early.")

    def _end(self) -> None:
        self._ended, self._unpacker = True, None
        self.stray = os.fstat(self._file.fileno()).st_size - self._start
