"""Makes NIfTI files byte by byte, right ones and wrong ones, for the tests."""

import gzip
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import ArrayLike, NDArray

from pfms.errors import PfmsError
from pfms.volumes.admit import VolumeFacts, VolumeLimits, admit_volume

Order = Literal["<", ">"]
ORDERS: tuple[Order, ...] = ("<", ">")
SECRET = b"DOE^JANE"
LIMITS = VolumeLimits(max_volume_bytes=1 << 30, max_grid_voxels=500_000_000)

# Turned about all three axes, 0.8 x 0.9 x 2.5 mm, away from the origin.
OBLIQUE = np.array(
    [
        [0.751754, -0.246202, -0.427525, 12.5],
        [0.273616, 0.845723, 0.427525, -40.0],
        [0.0, -0.184655, 2.425693, 301.25],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def ct(shape: tuple[int, ...] = (5, 6, 7), dtype: str = "int16", seed: int = 0) -> NDArray[Any]:
    """Give noise between air and bone, or whatever of it the type holds."""
    noise = np.random.default_rng(seed).uniform(-1000, 1500, shape)
    if dtype in ("int8", "uint8"):
        noise /= 15
    if dtype.startswith("u"):
        noise = np.abs(noise)
    return noise.astype(dtype)


def nifti(
    data: NDArray[Any],
    affine: ArrayLike = OBLIQUE,
    *,
    version: int = 1,
    order: Order = "<",
    between: bytes = bytes(4),
    tail: bytes = b"",
    **fields: Any,
) -> bytes:
    """Give a file, unpacked: header, `between`, voxels, `tail`.

    Args:
        data: Voxels, written as they are, in the byte order `order`.
        affine: Goes into sform and qform, both with code 1.
        version: 1 or 2.
        order: `<` or `>`.
        between: What lies between header and voxels.
        tail: What follows the voxels.
        fields: Values for the header's fields, set at the end, however wrong.
    """
    header = (Nifti1Header if version == 1 else Nifti2Header)(endianness=order)
    header.set_data_shape(data.shape)
    header.set_data_dtype(data.dtype)
    matrix = np.asarray(affine, dtype=np.float64)
    header.set_qform(matrix, 1)
    header.set_sform(matrix, 1)
    header["xyzt_units"] = 2
    header["vox_offset"] = header.sizeof_hdr + len(between)
    for name, value in fields.items():
        header[name] = value
    voxels = data.astype(data.dtype.newbyteorder(order)).tobytes(order="F")
    return bytes(header.binaryblock + between + voxels + tail)


def put(path: Path, data: bytes, *, packed: bool = True) -> Path:
    """Write a file, gzipped or not."""
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    return path


def admit(upload: Path, limits: VolumeLimits = LIMITS) -> tuple[VolumeFacts, Path]:
    """Admit it; nothing but the target, and perhaps the upload, is there afterwards."""
    target = upload.with_name("input.nii.gz")
    facts = admit_volume(upload, target, limits)
    assert {path.name for path in target.parent.iterdir()} <= {upload.name, target.name}
    return facts, target


def refused(
    upload: Path, kind: type[PfmsError], limits: VolumeLimits = LIMITS, *words: str
) -> PfmsError:
    """See it refused: nothing but the upload is left, and no text of its header is revealed."""
    with pytest.raises(kind) as caught:
        admit(upload, limits)
    assert [path.name for path in upload.parent.iterdir()] == [upload.name]
    told = f"{caught.value.detail} {caught.value.remedy}"
    assert str(upload.parent) not in told
    assert SECRET.decode() not in told
    for word in words:
        assert word in told
    return caught.value
