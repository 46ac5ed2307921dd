"""Recognises a NIfTI file by its first bytes."""

from typing import Literal

from pfms.errors import NotANifti, TruncatedNifti
from pfms.volumes.not_nifti import read_as_text

HEAD = {1: 348, 2: 540}
"""Bytes of a header, by version; the first four bytes of a file say the same number."""

_PAIR = "Join the pair into one file: nibabel.save(nibabel.load('NAME.hdr'), 'NAME.nii.gz')."


def nifti_version(head: bytes) -> Literal[1, 2] | None:
    """Return the NIfTI version of a file that begins with `head`; None if it is not like NIfTI.

    Args:
        head: The first 540 bytes, unpacked, or 348 if they are not NIfTI-2; fewer if there are
            no more.

    Raises:
        NotANifti: It is like NIfTI, but cannot be read.
        TruncatedNifti: It ends inside its header.
    """
    if head[344:348] == b"n+1\0":
        return 1
    if head[:4] in _sizes(2) and head[4:8] == b"n+2\0":
        if len(head) < HEAD[2]:
            raise TruncatedNifti("The file ends inside its NIfTI header.")
        if head[8:12] not in (b"\r\n\x1a\n", bytes(4)):
            raise NotANifti("Its NIfTI-2 signature was changed by a transfer in text mode.")
        return 2
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        raise NotANifti("This is the header of a NIfTI pair (.hdr and .img).", _PAIR)
    if head[:4] in _sizes(1) | _sizes(2):
        if spoilt := read_as_text(head):
            raise spoilt
        if len(head) < HEAD[1]:
            raise TruncatedNifti("The file ends inside its NIfTI header.")
        raise NotANifti("This is an Analyze 7.5 header, or a NIfTI without its signature.", _PAIR)
    return None


def _sizes(version: int) -> set[bytes]:
    return {HEAD[version].to_bytes(4, order) for order in ("little", "big")}
