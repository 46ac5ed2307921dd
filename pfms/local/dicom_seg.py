"""Writes a result as DICOM SEG, on the images of the series that it was made from.

Needs the extra `dicom`.
"""

import os
from pathlib import Path

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as SegImage
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import pfms
from pfms.client.problems import Json
from pfms.local.dicom_series import CannotConvert
from pfms.local.dicom_volume import Stack

_SAME = 1e-3  # mm: how far the affine of a result may be from that of its series
_NUMBER = 1000  # is added to a series' number for that of its segmentation
# Attributes that every image has, if only empty; programs that remove identities leave some out.
_EVEN_IF_EMPTY = (
    "AccessionNumber",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyID",
    "StudyTime",
)


def write_seg(stack: Stack, labels: Path, target: Path, model: str, job: Json | None) -> int:
    """Write a label map as a DICOM SEG of the same study: binary, with the one segment Spleen.

    Args:
        stack: The series that was segmented.
        labels: What the server made of it: NIfTI, on the grid of the series; 0 is background.
        target: The file to write; it appears once complete.
        model: ID of the model.
        job: The job that made the labels; None from a server that keeps no jobs.

    Returns:
        Voxels of the spleen. Without any the file is valid, and all its frames are empty.

    Raises:
        CannotConvert: The labels are not on the grid of the series, or the headers of the series
            do not have what a SEG needs.
    """
    voxels = _voxels(stack, labels)
    files = dict.fromkeys(plane.file for plane in stack.planes)
    sources = [_header(file) for file in files]
    if len(sources) == 1:  # one file with many images: in its own order
        voxels = voxels[np.argsort([plane.frame for plane in stack.planes])]
    made_by = job["id"] if job else labels.name
    series_uid, own_uid = (
        generate_uid(entropy_srcs=[sources[0].SeriesInstanceUID, made_by, kind])
        for kind in ("series", "instance")
    )
    count = int(voxels.sum())
    segment = _segment(model, job)
    try:
        image = SegImage(
            source_images=sources,
            pixel_array=voxels,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[segment],
            series_instance_uid=series_uid,
            series_number=int(sources[0].get("SeriesNumber") or 0) + _NUMBER,
            sop_instance_uid=own_uid,
            instance_number=1,
            manufacturer="pfms",
            manufacturer_model_name="pfms",
            software_versions=pfms.__version__,
            device_serial_number="1",  # it must have one
            content_label="SPLEEN",
            content_description="Spleen, segmented by spleenseg",
            series_description="Spleen, segmented by spleenseg",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=count > 0,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        detail = f"the series cannot have a DICOM SEG: {error}"
        remedy = "Its result as NIfTI is there."
        raise CannotConvert(detail, remedy, job["id"] if job else None) from error
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        image.save_as(part)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return count


def _voxels(stack: Stack, labels: Path) -> NDArray[np.uint8]:
    """The labels as 0 and 1, [image, row, column] as in the stack."""
    image = Nifti1Image.from_filename(labels)
    if image.shape != stack.shape or not np.allclose(image.affine, stack.affine, 0, _SAME):
        detail = "the result is not on the grid of the series, so it cannot be a DICOM SEG"
        raise CannotConvert(detail, "Is the server another program than pfms?")
    return np.ascontiguousarray((np.asanyarray(image.dataobj) != 0).astype(np.uint8).T)


def _header(file: Path) -> Dataset:
    header = dcmread(file, stop_before_pixels=True)
    for keyword in _EVEN_IF_EMPTY:
        if keyword not in header:
            setattr(header, keyword, "")
    return header


def _segment(model: str, job: Json | None) -> SegmentDescription:
    parameters = {"modelID": model}
    version = "unknown"
    if job is not None:
        parameters |= {"weights": f"SHA-256 {job['model']['sha256']}", "job": job["id"]}
        version = job["versions"].get("spleenseg", version)
    return SegmentDescription(
        segment_number=1,
        segment_label="Spleen",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.Spleen,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name="spleenseg",
            family=codes.DCM.ArtificialIntelligence,
            version=version,
            source="FNNDSC",
            parameters=parameters,
        ),
    )
