"""Finds out from a file's first bytes, or a zip archive's list, that it has no weights; no torch.

Part of the program `weights_child.py`: imports nothing of pfms.
"""

import os
import re
import zipfile
from typing import IO

UNPACKED_BYTES = 256 << 20  # the network's weights have 20 MB, and torch.save compresses nothing
HEAD_BYTES = 512

ADVICE = "save the network's state_dict() with torch.save, and upload that"
CUT_OFF = "The file is cut off or damaged: send it again."
# The start of torch.save's old format, from before it wrote zip archives; it still can write this.
LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"
FOREIGN = (
    (rb"version https://git-lfs", "is a Git LFS pointer, not the file itself: `git lfs pull`"),
    (rb"\x1f\x8b", "is gzipped: unpack it first, if there are weights in it"),
    (rb".{344}n\+1\0|.{4}n\+2\0", "is a NIfTI volume, not weights"),
    (rb".{128}DICM", "is a DICOM image, not weights"),
    (rb".{257}ustar", "is a tar archive: upload the .pth in it"),
    (rb"\x89HDF", f"is HDF5, not PyTorch: {ADVICE}"),
    (rb"\x93NUMPY", f"is a NumPy array, not PyTorch weights: {ADVICE}"),
    (rb".{5}\0{3}\{", f"is safetensors, not PyTorch's own format: {ADVICE}"),
    (rb"\x08.\x12", f"is ONNX, not PyTorch: {ADVICE}"),
    (rb"\x80", f"is a pickle that torch.save did not write: {ADVICE}"),
    (rb"[^\0-\x08\x0e-\x1f]+\Z", "is text, not weights"),
)


def problem_with(file: IO[bytes]) -> str:
    """Why torch.save cannot have written this file, in one sentence; else empty."""
    head = file.read(HEAD_BYTES)
    if not head:
        return "The file is empty."
    if head.startswith(b"PK\x03\x04"):
        return problem_with_archive(file)
    if LEGACY_MAGIC in head[:32]:
        return ""
    for pattern, words in FOREIGN:
        if re.match(pattern, head, re.DOTALL):
            return f"The file {words}."
    return "The file was not written by torch.save."


def problem_with_archive(file: IO[bytes]) -> str:
    """Why a zip archive is not from torch.save, is damaged or unpacks to too much; else empty."""
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        names = {entry.filename.partition("/")[2] for entry in entries}
        if "data.pkl" not in names:
            inside = any(name.endswith((".pt", ".pth")) for name in archive.namelist())
            what = "upload the .pt or .pth in it" if inside else "there are no weights in it"
            return f"The file is a zip archive that torch.save did not write: {what}."
        if "constants.pkl" in names:
            return f"The file is a TorchScript archive, not a state dict: {ADVICE}."
        size = file.seek(0, os.SEEK_END)
        if sum(entry.file_size for entry in entries) > max(UNPACKED_BYTES, 2 * size):
            return "The file unpacks to far more than its own size."
        for entry in entries:
            # torch itself does not verify checksums; it writes 0 if told not to compute them.
            if entry.CRC:
                with archive.open(entry) as record:
                    while record.read(1 << 20):
                        pass
    except MemoryError:
        raise
    except Exception:
        return CUT_OFF
    return ""
