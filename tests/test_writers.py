"""Headers as the usual programs write them are taken, and reach the plugin as they are."""

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.niftis import OBLIQUE, SECRET, admit, ct, nifti, put

LPS = np.diag([-0.977, -0.977, 5.0, 1.0])
LAS = np.diag([-0.977, 0.977, 5.0, 1.0])
RIGID = nib.Nifti1Image(ct(), OBLIQUE).get_qform()
GEOMETRY: tuple[str, ...] = ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "xyzt_units")
GEOMETRY += ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")

MILLIMETRES_AND_SECONDS = 10


def extension(code: int, content: bytes, order: str = "<") -> bytes:
    """What lies between header and voxels where there is one extension."""
    size = -(-(8 + len(content)) // 16) * 16
    return b"\1\0\0\0" + struct.pack(f"{order}ii", size, code) + content.ljust(size - 8, b"\0")


def tilted() -> Any:
    """The plane of the slices leans by 15 degrees against the way of the table."""
    affine = LAS.copy()
    lean = np.deg2rad(15)
    affine[1:3, 1] = 0.977 * np.cos(lean), -0.977 * np.sin(lean)
    return affine


AFNI = b'<?xml version="1.0"?>\n<AFNI_attributes self_idcode="XYZ"/>' + SECRET
FSL = {"descrip": b"6.0.5:9e026117", "aux_file": b"", "xyzt_units": MILLIMETRES_AND_SECONDS}
SPM = {"descrip": b"SPM12 - coregistered", "xyzt_units": 2}
ITK = {"xyzt_units": MILLIMETRES_AND_SECONDS, "pixdim": [1, 0.977, 0.977, 5, 0, 0, 0, 0]}

# The affine, and what else the file has: fields, voxel type, version, byte order, extension.
WRITERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dcm2niix": (
        LAS,
        {"descrip": b"TE=0;Time=120000.000", "xyzt_units": 10, "scl_slope": 1, "scl_inter": -1024},
    ),
    "dcm2niix, gantry tilt kept": (tilted(), {"xyzt_units": 10, "regular": b"r"}),
    "dcm2niix, uint16": (LAS, {"dtype": "uint16", "scl_slope": 1, "scl_inter": -1024}),
    "ITK, SimpleITK, c3d, ANTs, 3D Slicer": (LPS, ITK),
    "ITK, one volume of a series": (
        LPS,
        {"axes": 4, **ITK, "pixdim": [1, 0.977, 0.977, 5, 1, 0, 0, 0]},
    ),
    "ITK before 5": (LPS, {**ITK, "qform_code": 1, "sform_code": 0}),
    "FSL": (LAS, {**FSL, "sform_code": 1, "qform_code": 1, "cal_max": 1000, "cal_min": -1000}),
    "FSL in standard space": (LAS, {**FSL, "sform_code": 4, "qform_code": 4, "dtype": "float32"}),
    "nibabel": (OBLIQUE, {"sform_code": 2, "qform_code": 0, "xyzt_units": 0}),
    "nibabel, unscaled floats": (
        RIGID,
        {"dtype": "float64", "scl_slope": np.nan, "scl_inter": np.nan, "sform_code": 2},
    ),
    "MRtrix": (RIGID, {"xyzt_units": 10, "between": extension(6, b"command_history: mrconvert")}),
    "MRtrix, NIfTI-2": (RIGID, {"version": 2, "between": extension(6, b"comments: " + SECRET)}),
    "SPM": (RIGID, {**SPM, "sform_code": 2, "qform_code": 2, "scl_slope": 0.5}),
    "SPM, normalised": (LAS, {**SPM, "sform_code": 4, "qform_code": 4, "dtype": "float32"}),
    "AFNI": (RIGID, {"between": extension(4, AFNI), "xyzt_units": 10, "sform_code": 1}),
    "AFNI, big endian": (RIGID, {"order": ">", "between": extension(4, AFNI, ">")}),
    "AFNI, in a template's space": (LAS, {"sform_code": 5, "qform_code": 5}),
    "DICOM in an extension": (RIGID, {"between": extension(2, SECRET * 100)}),
    "FreeSurfer": (RIGID, {"descrip": b"FreeSurfer Nov 18 2020", "dim_info": 57, "slice_code": 1}),
    "voxels further on": (RIGID, {"between": bytes(4 + 672)}),
    "MATLAB": (LAS, {"sform_code": 1, "qform_code": 0, "slice_end": 6, "dtype": "int32"}),
    "a map of statistics": (LAS, {"intent_code": 3, "intent_p1": 20, "dtype": "float32"}),
    "a time and a display range": (LAS, {"toffset": 3, "cal_max": np.nan, "xyzt_units": 26}),
}


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("writer", WRITERS)
def test_what_common_programs_write_is_accepted_unchanged(
    tmp_path: Path, writer: str, packed: bool
) -> None:
    affine, fields = WRITERS[writer][0], dict(WRITERS[writer][1])
    data = ct(dtype=fields.pop("dtype", "int16"))
    data = data[..., np.newaxis] if fields.pop("axes", 3) == 4 else data
    whole = nifti(data, affine, **fields)

    facts, copy = admit(put(tmp_path / "upload", whole, packed=packed))

    assert [text for text in facts.warnings if "Hounsfield" not in text] == []
    assert np.allclose(facts.affine, affine, atol=1e-4)
    image = nib.load(copy)
    assert image.shape == (5, 6, 7)
    assert np.array_equal(image.dataobj.get_unscaled(), data.reshape(5, 6, 7))
    kind = nib.Nifti2Header if fields.get("version") == 2 else nib.Nifti1Header
    sent, kept = (
        kind(each[: kind.sizeof_hdr], check=False)
        for each in (whole, gzip.decompress(copy.read_bytes()))
    )
    for field in GEOMETRY:
        np.testing.assert_array_equal(kept[field], sent[field], field)
    np.testing.assert_array_equal(kept["pixdim"][:4], sent["pixdim"][:4])
    assert not image.header.extensions
