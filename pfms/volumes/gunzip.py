"""Reads a gzip file member by member, so that trailing bytes can be told from damage."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from isal import igzip_lib

_INPUT = 128 << 10
# Each member costs time, however little is in it: bgzip puts 64 KiB into one, pigz 128.
_FREE_MEMBERS, _LEAST_IN_MEMBER = 10_000, 16 << 10
_MARK = b"\x1f\x8b"
_HEADER, _FLAGS = 10, 3  # bytes of a member's header; where its flags are
_CHECKSUM, _EXTRA, _NAME, _COMMENT = 2, 4, 8, 16  # flags: what follows the header
_LONGEST_EXTRA = 0xFFFF
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
        named: Where in the file the members begin whose headers have a name or a comment.
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
        self.named: list[int] = []

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
        while len(self._input) <= _FLAGS and (more := self._file.read(_INPUT)):
            self._input = (self._input + more).lstrip(b"\0")
        self._start = self._file.tell() - len(self._input)
        if not self._input.startswith(_MARK):
            self._end()
            return None
        self.members += 1
        if self._input[_FLAGS : _FLAGS + 1] and self._input[_FLAGS] & (_NAME | _COMMENT):
            self.named.append(self._start)
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


def clear_names(path: Path, named: Iterable[int]) -> bool:
    """Clear, in place, what the headers of gzip members say of the file that was packed.

    Its name and any comment become an extra field of zeros, which every reader skips.

    Args:
        path: The gzip file.
        named: Where those members begin, as `GzipStream` found them.

    Returns:
        Whether all were cleared; an empty or endless name cannot be.
    """
    with path.open("r+b") as file:
        for start in named:
            file.seek(start)
            head = file.read(_HEADER + 2 + _LONGEST_EXTRA)
            length = _end_of_texts(head) - _HEADER
            if not 2 <= length <= 2 + _LONGEST_EXTRA:
                return False
            flags = head[_FLAGS] & ~(_CHECKSUM | _NAME | _COMMENT) | _EXTRA
            size = (length - 2).to_bytes(2, "little")
            file.seek(start)
            file.write(head[:_FLAGS] + bytes([flags]) + head[_FLAGS + 1 : _HEADER])
            file.write(size + bytes(length - 2))
    return True


def _end_of_texts(head: bytes) -> int:
    """Return where the packed bytes of a member begin; 0 if that is not within `head`."""
    flags, end = head[_FLAGS], _HEADER
    if flags & _EXTRA:
        end += 2 + int.from_bytes(head[end : end + 2], "little")
    for text in (_NAME, _COMMENT):
        if flags & text:
            at = head.find(b"\0", end)
            if at < 0:
                return 0
            end = at + 1
    return end + 2 if flags & _CHECKSUM else end
