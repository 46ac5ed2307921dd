"""Writes a result of a few megabytes that claims, or unpacks to, far more; the model says how."""

import gzip
import sys
import zlib
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))
import nibabel as nib
from common import segment

RESULT = Path("output/inference/input/input_seg.nii.gz")
LOGITS = Path("output/inference/output.nii.gz")


def header(shape, offset=544.0):
    made = nib.Nifti2Header()
    made.set_data_dtype("float64")
    made["dim"][0] = len(shape)
    made["dim"][1 : len(shape) + 1] = shape
    made["vox_offset"] = offset
    return made.binaryblock + bytes(4)


def packed(first, mebibytes):
    """`first`, then zeros."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [deflate.compress(first)]
    pieces += [deflate.compress(bytes(1 << 20)) for _ in range(mebibytes)]
    return b"".join([*pieces, deflate.flush()])


segment()
grid = nib.load(RESULT).shape
match Path("input/model.pth").read_text():
    case "far_voxels":
        RESULT.write_bytes(packed(header(grid, 2**40), 8))
    case "huge_shape":
        RESULT.write_bytes(packed(header((30000, 30000, 30000, 2)), 8))
    case "endless_gzip":
        with RESULT.open("ab") as file:
            file.write(gzip.compress(b"") * 200_000)
    case "endless_name":
        RESULT.write_bytes(b"\x1f\x8b\x08\x08\0\0\0\0\0\x03" + b"n" * (8 << 20))
    case "endless_zeros":
        RESULT.write_bytes(packed(header(grid, 2**33), 256))
    case "huge_logits":
        LOGITS.write_bytes(packed(header((30000, 30000, 30000)), 8))
