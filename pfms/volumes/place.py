"""Decides where a volume lies, and writes a header that leaves no doubt about it.

A NIfTI header gives the spacing in pixdim, and the place in an sform and a qform. Writers fill in
only some of the three, or let them contradict each other, and readers resolve that differently.
The plugin gets a copy whose header leaves its reader (`geometry.loaded_affine`) no choice but the
place that the client is told.
"""

import re
import struct
from dataclasses import dataclass

import numpy as np
from nibabel.nifti1 import Nifti1Header

from pfms.errors import UnsupportedNifti
from pfms.plugin.types import Floats
from pfms.volumes.geometry import (
    Affine,
    header_affine,
    loaded_affine,
    orientation_of,
    same,
    spacing_of,
)
from pfms.volumes.reader import NiftiReader

_COMMENT = 6  # the ecode of a header extension of plain text
_NOTE = "pfms: pixdim of the upload: "

_NO_PLACE = (
    "The header says nothing about the volume's orientation (neither sform nor qform has a code): "
    "it was taken to be {}, as by nibabel."
)
_TWO_PLACES = (
    "The header places the volume in two ways, by an sform and by a qform with another voxel "
    "spacing: the plugin uses the qform."
)
_BAD_SFORM = (
    "The sform in the header cannot be used (it is zero, singular, not finite or nowhere near the "
    "size of a patient): volume and labels are placed by the qform."
)
_OTHER_PIXDIM = (
    "The voxel spacing in the header (pixdim) differs from its sform's: the volume is placed by "
    "the sform."
)


@dataclass(frozen=True)
class Place:
    """Where a volume lies.

    Attributes:
        affine: What the client is told.
        loaded: What the plugin works with; it differs only where a warning says so.
        corrected: The header that the copy needs; None if the stored one will do.
        note: Bytes that belong between header and voxels of that copy: the flag for header
            extensions and, if there is one, the extension.
        warnings: What is doubtful about it, one sentence each.
    """

    affine: Affine
    loaded: Affine
    corrected: Nifti1Header | None = None
    note: bytes = bytes(4)
    warnings: tuple[str, ...] = ()


def find_place(source: NiftiReader) -> Place:
    """Find where a volume lies.

    The sform counts if it has a code and can be used; otherwise the qform, on the same terms. If
    both have a code and only the qform has the spacing of pixdim, the plugin uses the qform, as it
    does when run by hand. The plugin would also believe a qform without a code; it gets no chance.

    Raises:
        UnsupportedNifti: Nothing in the header can be used.
    """
    stored, header = source.stored, source.header
    pixdim = stored["pixdim"][1:4]
    spaced = bool((np.isfinite(pixdim) & (pixdim != 0)).all())
    if header["sform_code"] == 0:
        if not spaced:
            raise UnsupportedNifti("Its voxel spacing (pixdim) is zero or not finite.")
        return _without_sform(header)
    try:
        affine = header_affine(header)
    except UnsupportedNifti:
        if header["qform_code"] == 0 or not spaced:
            raise
        return _by_qform(stored, header)
    believed = _believed(header) if spaced else None
    if believed is not None and same(affine, believed):
        return Place(affine, believed)
    three_axes = len(source.shape) == 3  # with more, the plugin believes the sform in any case
    if believed is not None and header["qform_code"] != 0 and three_axes:
        return Place(affine, believed, warnings=(_TWO_PLACES,))
    return _by_sform(stored, affine, spaced)


def pixdim_of_upload(copy: NiftiReader) -> Floats | None:
    """Return the spacing (pixdim 1 to 3) of the upload, if that in its copy is different.

    Args:
        copy: Opened, with no voxel read yet.
    """
    extension = copy.extension()
    if len(extension) < 8:
        return None
    size, code = struct.unpack(f"{copy.header.endianness}ii", extension[:8])
    found = re.fullmatch(rf"{_NOTE}([^ ]+) ([^ ]+) ([^ \0]+)\0*".encode(), extension[8:size])
    if code != _COMMENT or not found:
        return None
    return np.array([float(number) for number in found.groups()])


def _without_sform(header: Nifti1Header) -> Place:
    affine = header_affine(header)
    if header["qform_code"] != 0:
        return Place(affine, affine)
    return Place(affine, affine, warnings=(_NO_PLACE.format(orientation_of(affine)),))


def _by_qform(stored: Nifti1Header, header: Nifti1Header) -> Place:
    """Put the qform in place of an sform that cannot be used."""
    bare = header.copy()
    bare["sform_code"] = 0
    corrected = stored.copy()
    corrected.set_sform(header_affine(bare), int(stored["sform_code"]))
    affine = header_affine(corrected)
    return Place(affine, affine, corrected, warnings=(_BAD_SFORM,))


def _by_sform(stored: Nifti1Header, affine: Affine, spaced: bool) -> Place:
    """Set pixdim to the spacing of the sform; otherwise the plugin would not believe the sform."""
    corrected = stored.copy()
    corrected["pixdim"][1:4] = spacing_of(affine)
    note = _note(stored) if spaced else bytes(4)
    return Place(affine, affine, corrected, note, (_OTHER_PIXDIM,))


def _note(stored: Nifti1Header) -> bytes:
    """Put the upload's pixdim into a header extension, from which the labels get it back."""
    text = _NOTE + " ".join(repr(float(length)) for length in stored["pixdim"][1:4])
    size = -(-(8 + len(text)) // 16) * 16
    extension = struct.pack(f"{stored.endianness}ii", size, _COMMENT) + text.encode()
    return b"\1\0\0\0" + extension.ljust(size, b"\0")


def _believed(header: Nifti1Header) -> Affine | None:
    """Return the affine that the plugin would work with; None if it would fail at the header."""
    try:
        return loaded_affine(header)
    except UnsupportedNifti:
        return None
