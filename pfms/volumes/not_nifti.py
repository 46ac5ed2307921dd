"""Tells the sender of a file that is not NIfTI what it is, and what to do about it.

Only the kind of the file is revealed: names in archives may be those of patients.
"""

import codecs
import re
import string
import zlib
from base64 import b64decode
from collections.abc import Iterator

from pfms.errors import NotANifti

LOOKED_AT = 64 << 10
"""Bytes from the start of a file that are enough to recognise it."""

_KindAndRemedy = tuple[str, str | None]

_CONVERT = (
    "Convert the series to NIfTI with `dcm2niix -z y FOLDER`, and send the .nii.gz. "
    "`pfms infer FOLDER` does both."
)
_SLICER = "Convert it to NIfTI, with 3D Slicer or SimpleITK."
_ITSELF = "Send the bytes of the file itself; with curl: -F file=@ct.nii.gz."
_BINARY = (
    "Read and send the file in binary mode: curl -F file=@ct.nii.gz, open(NAME, 'rb') in Python, "
    "the File or Blob itself in JavaScript."
)
_WEIGHTS = "Weights go to POST /api/v1/spleenseg/modelpth?modelID=NAME; send the CT volume here."
_ANY = (
    "Send a NIfTI-1 or NIfTI-2 file, plain or gzipped: dcm2niix makes one from DICOM, and nibabel "
    "from a pair of .hdr and .img."
)

# Offset, bytes, what the file is, what to do about it.
_SIGNATURES = (
    (128, b"DICM", "a DICOM file", _CONVERT),
    (0, b"\x1f\x8b", "gzipped twice", "Unpack it once (gunzip) and send the result."),
    (0, b"\x1f\x9d", "compressed with compress", "Unpack it (uncompress); gzip is supported."),
    (0, b"BZh", "compressed with bzip2", "Unpack it (bunzip2); gzip is supported."),
    (0, b"\xfd7zXZ", "compressed with xz", "Unpack it (unxz); gzip is supported."),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "Unpack it (unzstd); gzip is supported."),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "Unpack it (unlz4); gzip is supported."),
    (0, b"7z\xbc\xaf", "a 7-zip archive", "Unpack it and send the NIfTI file in it."),
    (0, b"Rar!", "a RAR archive", "Unpack it and send the NIfTI file in it."),
    (0, b"NRRD", "an NRRD file", _SLICER),
    (0, b"\x89HDF", "an HDF5 or MINC file", "Convert it to NIfTI; for MINC: mnc2nii."),
    (0, b"CDF", "a NetCDF or MINC file", "Convert it to NIfTI; for MINC: mnc2nii."),
    (0, b"\x93NUMPY", "a NumPy array", "Save it as NIfTI with nibabel, affine included."),
    (0, b"MATLAB ", "a MATLAB file", "Save it as NIfTI (niftiwrite)."),
    (0, b"\x80\x02\x8a\x0a", "a file of weights (PyTorch)", _WEIGHTS),
    (0, b"HTTP/", "an HTTP response with its headers", "Download it again; omit -i with curl."),
    (0, b"\x89PNG", "a PNG picture", None),
    (0, b"\xff\xd8\xff", "a JPEG picture", None),
    (0, b"GIF8", "a GIF picture", None),
    (0, b"II*\0", "a TIFF picture", None),
    (0, b"MM\0*", "a TIFF picture", None),
    (0, b"%PDF", "a PDF document", None),
)

# How a gzip file begins after it was read as text, in UTF-8 and in Latin-1, and written in UTF-8.
_GZIP_AS_TEXT = (b"\x1f\xef\xbf\xbd", b"\x1f\xc2\x8b")
_REPLACED = "\N{REPLACEMENT CHARACTER}".encode()

_VALUE_TYPES = {b"AE", b"CS", b"DA", b"DT", b"LO", b"OB", b"PN", b"SH", b"TM", b"UI", b"UL", b"US"}
_CONTROL = {chr(code) for code in range(32)} - set("\t\n\r\f\x1b")
_NAME = re.compile(
    r"[^\n]+\.(nii|gz|hdr|img|dcm|nrrd|nhdr|mha|mhd|mgz|mgh|zip|tar|tgz)", re.IGNORECASE
)
_PATH = re.compile(r"(/|\./|\.\./|~/|file://|[A-Za-z]:\\|\\\\)[^\n]+")
_HOW_TO_NAME = (
    "Send the file, not its name: with curl put an @ before it (-F file=@ct.nii.gz), and use -F, "
    "not --form-string."
)
_PRINTED = re.compile(
    r"b['\"]\\|31, ?139, ?8,|92, ?1, ?0, ?0,|\[31, ?139, ?8,|1f ?8b ?08|5c ?01 ?00"
)


def not_a_nifti(start: bytes) -> NotANifti:
    """Return the error for a file that is not NIfTI.

    Args:
        start: Its first `LOOKED_AT` bytes or so, unpacked if it is gzipped.
    """
    if not start:
        return NotANifti("The file is empty.", "Check its size before you send it, and try again.")
    what, remedy = (
        _by_archive(start)
        or _corrupted(start)
        or _by_signature(start)
        or _by_header(start)
        or _by_text(start)
    ) or ("", None)
    if not what:
        return NotANifti("The file has neither the signature of NIfTI-1 nor that of NIfTI-2.", _ANY)
    return NotANifti(f"This is {what}, not a NIfTI volume.", remedy)


def read_as_text(head: bytes) -> NotANifti | None:
    """Return the error for a NIfTI header that was read as text; None for another one."""
    if _REPLACED not in head:
        return None
    return NotANifti(
        "This is a NIfTI file that was read as text, which corrupts its bytes.", _BINARY
    )


def _corrupted(start: bytes) -> _KindAndRemedy | None:
    if start.startswith(_GZIP_AS_TEXT):
        return "a gzip file that was read as text, which corrupts its bytes", _BINARY
    return None


def _by_signature(start: bytes) -> _KindAndRemedy | None:
    for at, mark, what, remedy in _SIGNATURES:
        if start[at : at + len(mark)] == mark:
            return what, remedy
    return None


def _by_archive(start: bytes) -> _KindAndRemedy | None:
    if start.startswith(b"PK\x03\x04"):
        kind, unpack, entries = "a zip archive", "Unzip it", _zipped(start)
    elif start[257:262] == b"ustar":
        kind, unpack, entries = "a tar archive", "Unpack it (tar xf)", _in_tar(start)
    else:
        return None
    for name, content in entries:
        if name.endswith(b"/data.pkl"):
            return "a file of weights (PyTorch)", _WEIGHTS
        if name.endswith(b".npy"):
            return "a NumPy archive", "Save the volume as NIfTI with nibabel, affine included."
        if name.endswith((b".nii", b".nii.gz")):
            break
        named = name.lower().endswith((b".dcm", b".ima", b".dicom", b"dicomdir"))
        if named or content[128:132] == b"DICM" or _is_bare_dicom(content):
            convert = _CONVERT[0].lower() + _CONVERT[1:]
            return f"{kind} of DICOM files", f"{unpack}, then {convert}"
    return kind, f"{unpack} and send the NIfTI file in it."


def _zipped(start: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the first bytes of each entry that begins in `start`."""
    at = 0
    while at >= 0 and len(start) >= at + 30:
        method, name, extra = (
            int.from_bytes(start[at + field : at + field + 2], "little") for field in (8, 26, 28)
        )
        content = start[at + 30 + name + extra :]
        if method == 8:  # deflated
            try:
                content = zlib.decompressobj(-15).decompress(content, 1024)
            except zlib.error:
                content = b""
        yield start[at + 30 : at + 30 + name], content[:1024]
        # An entry need not state its length, so the next one is searched for.
        at = start.find(b"PK\x03\x04", at + 30 + name)


def _in_tar(start: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while start[at + 257 : at + 262] == b"ustar":
        yield start[at : at + 100].rstrip(b"\0"), start[at + 512 : at + 1536]
        digits = start[at + 124 : at + 136].strip(b"\0 ")
        if not re.fullmatch(rb"[0-7]+", digits):
            return
        at += 512 + -(-int(digits, 8) // 512) * 512


def _by_header(start: bytes) -> _KindAndRemedy | None:
    """Recognise it by its header, if it has no signature."""
    if b"ElementDataFile" in start[:4096]:
        return "a MetaImage file (.mha, .mhd)", _SLICER
    if re.match(rb"--[^\r\n]{1,70}\r?\ncontent-", start, re.IGNORECASE):
        return "a form inside the form's field", (
            "Give the HTTP library the bytes of the file; it builds the form itself."
        )
    if _is_bare_dicom(start):
        return "a DICOM file without its preamble", _CONVERT
    numbers = [int.from_bytes(start[at : at + 4], "big") for at in range(0, 24, 4)]
    if numbers[0] == 1 and all(0 < length < 1 << 16 for length in numbers[1:5]) and numbers[5] < 12:
        return "an MGH or MGZ file (FreeSurfer)", "Convert it: mri_convert NAME.mgz NAME.nii.gz."
    return None


def _is_bare_dicom(start: bytes) -> bool:
    """Whether it begins with the first elements of group 2 or 8, in little endian."""
    if start[:2] not in (b"\x02\0", b"\x08\0"):
        return False
    if start[4:6] in _VALUE_TYPES:
        return True
    length = int.from_bytes(start[4:8], "little")
    return length < 256 and start[8 + length : 10 + length] == start[:2]


def _by_text(start: bytes) -> _KindAndRemedy | None:
    """Recognise text by what it says."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "text in UTF-16, as PowerShell writes it", _BINARY
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start)
    except UnicodeDecodeError:
        return None
    if _CONTROL & set(text):
        return None
    return _by_words(text.strip()) or ("text", _ITSELF)


def _by_words(text: str) -> _KindAndRemedy | None:
    head = text[:200].lower()
    if head.startswith("version https://git-lfs"):
        return (
            "a Git LFS pointer",
            "Fetch the file that it stands for (git lfs pull) and send that.",
        )
    if "annex/objects/" in head:
        return "a git-annex pointer", "Fetch the file that it stands for (git annex get)."
    if head.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "a web page (HTML)", (
            "Download the file again and check it: you got this page, perhaps a login, instead."
        )
    if head.startswith("<"):
        return "an XML document", _ITSELF
    if head.startswith("[object "):
        return "what JavaScript prints for an object", (
            "Append the File or Blob itself to the FormData, not its text form."
        )
    if head.startswith(("http://", "https://")) and "\n" not in text:
        return "the address of a file", "Download the file and send its bytes (-F file=@ct.nii.gz)."
    if _is_base64(text):
        return "base64 text", (
            "Send the bytes themselves, not base64: base64 -d TEXT > ct.nii.gz, then "
            "curl -F file=@ct.nii.gz."
        )
    if _PRINTED.match(text):
        return "bytes printed as text", _BINARY
    if head.startswith(("{", "[")):
        return (
            "JSON",
            "Send the volume as multipart/form-data (curl: -F file=@ct.nii.gz), not JSON.",
        )
    name = text.strip("\"'@<> ")
    if _NAME.fullmatch(name) or _PATH.fullmatch(name):
        return "the name of a file", _HOW_TO_NAME
    return None


def _is_base64(text: str) -> bool:
    """Whether it is base64 of a gzip or NIfTI file, in a data URL or alone."""
    text = re.sub(r"^data:[^,]{0,200};base64,", "", text.lstrip("\"'"))[:4096]
    letters = "".join(text.split()).translate(str.maketrans("-_", "+/"))
    beginning = letters[:64].rstrip("=\"'")
    if not beginning or not set(beginning) <= set(string.ascii_letters + string.digits + "+/"):
        return False
    begins = b64decode(beginning[: len(beginning) // 4 * 4])
    return begins.startswith((b"\x1f\x8b\x08", b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0"))
