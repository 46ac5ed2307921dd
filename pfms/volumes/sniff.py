"""Tells a NIfTI file by its first bytes, and what it is where it is none."""

from typing import Literal

from pfms.errors import NotANifti, TruncatedNifti

HEAD = {1: 348, 2: 540}
"""Bytes of a header, by version; the first four bytes of a file say the same number."""

# Where, which bytes, what it is, what to do about it.
_KNOWN = (
    (128, b"DICM", "a DICOM file", "Convert the DICOM series to NIfTI: dcm2niix -z y FOLDER."),
    (0, b"PK\x03\x04", "a zip archive", "Unzip it and send the NIfTI file in it."),
    (257, b"ustar", "a tar archive", "Unpack it and send the NIfTI file in it."),
    (0, b"\x1f\x8b", "gzipped twice", "Unpack it once (gunzip) and send the result."),
    (0, b"BZh", "compressed with bzip2", "Unpack it (bunzip2); gzip is understood."),
    (0, b"\xfd7zXZ", "compressed with xz", "Unpack it (unxz); gzip is understood."),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "Unpack it (unzstd); gzip is understood."),
    (0, b"7z\xbc\xaf", "a 7-zip archive", "Unpack it and send the NIfTI file in it."),
    (0, b"NRRD", "an NRRD file", "Convert it to NIfTI, with 3D Slicer or SimpleITK."),
    (0, b"ObjectType", "a MetaImage header", "Convert it to NIfTI, with 3D Slicer or SimpleITK."),
    (0, b"\x89HDF", "an HDF5 file", "Convert it to NIfTI."),
    (0, b"\x89PNG", "a PNG picture", None),
    (0, b"\xff\xd8\xff", "a JPEG picture", None),
    (0, b"%PDF", "a PDF document", None),
)
_PAIR = "Join the pair into one file: nibabel.save(nibabel.load('NAME.hdr'), 'NAME.nii.gz')."


def nifti_version(head: bytes) -> Literal[1, 2]:
    """Tell the version of the NIfTI file that begins with `head`.

    Args:
        head: The first 540 bytes, unpacked, or 348 where they are no NIfTI-2; fewer if there are
            no more.

    Raises:
        NotANifti: It is something else, if possible with a remedy for just that.
        TruncatedNifti: It ends inside its header.
    """
    if head[344:348] == b"n+1\0":
        return 1
    if head[:4] in _sizes(2) and head[4:8] == b"n+2\0":
        if len(head) < HEAD[2]:
            raise TruncatedNifti("The file ends inside its NIfTI header.")
        if head[8:12] not in (b"\r\n\x1a\n", bytes(4)):
            raise NotANifti("Its NIfTI-2 mark was changed by a transfer in text mode.")
        return 2
    if not head:
        raise NotANifti("The file is empty.")
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        raise NotANifti("This is the header of a NIfTI pair (.hdr and .img).", _PAIR)
    if head[:4] in _sizes(1) | _sizes(2):
        if len(head) < HEAD[1]:
            raise TruncatedNifti("The file ends inside its NIfTI header.")
        raise NotANifti("This is an Analyze 7.5 header, or a NIfTI without its mark.", _PAIR)
    for at, mark, what, remedy in _KNOWN:
        if head[at : at + len(mark)] == mark:
            raise NotANifti(f"This is {what}, not a NIfTI volume.", remedy)
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        raise NotANifti("This is text, not a NIfTI volume.")
    raise NotANifti("The file has neither the mark of NIfTI-1 nor that of NIfTI-2.")


def _sizes(version: int) -> set[bytes]:
    return {HEAD[version].to_bytes(4, order) for order in ("little", "big")}
