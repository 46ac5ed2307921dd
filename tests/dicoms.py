"""Makes CT series as DICOM files, right ones and wrong ones, for the tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

NAME, PATIENT_ID, ACCESSION = "DOE^JANE", "MRN-7741-XQ", "ACC-5550-XQ"
SIZE = (18, 16, 12)  # columns, rows, slices
SPACING = (2.0, 2.5, 4.0)  # mm between columns, rows, slices

AXIAL = (1, 0, 0, 0, 1, 0)
HEAD_FIRST_PRONE = (-1, 0, 0, 0, -1, 0)
FEET_FIRST = (-1, 0, 0, 0, 1, 0)  # so the normal points to the feet
SAGITTAL = (0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, -1)
OBLIQUE = (0.939693, 0.296198, 0.171010, -0.342020, 0.813798, 0.469846)


def hounsfield(lps: NDArray[np.float64]) -> NDArray[np.int32]:
    """What a phantom's voxels are by their places in the patient [..., mm]: no two places alike."""
    x, y, z = np.moveaxis(lps, -1, 0)
    values: NDArray[np.int32] = np.rint(5 * x - 7 * y + 9 * z - 40).astype(np.int32)
    return values


@dataclass
class Phantom:
    """A CT series.

    Attributes:
        axes: The direction of a row, then that of a column, LPS.
        size: Columns, rows, slices.
        shift: mm between a slice and the next beyond the normal: of a tilted gantry.
        number: SeriesNumber.
        description: SeriesDescription.
        change: Attributes to set in every image; None removes one.
    """

    axes: Sequence[float] = AXIAL
    size: tuple[int, int, int] = SIZE
    shift: Sequence[float] = (0, 0, 0)
    number: int | None = 3
    description: str = "Abdomen venous"
    change: dict[str, Any] = field(default_factory=dict)
    uid: str = field(default_factory=generate_uid)
    study: str = field(default_factory=generate_uid)
    space: str = field(default_factory=generate_uid)

    def position(self, *, column: ArrayLike = 0, row: ArrayLike = 0, at: ArrayLike = 0) -> Any:
        """Where a voxel is, LPS, mm."""
        along, down = np.reshape(np.asarray(self.axes, np.float64), (2, 3))
        steps = (along, down, np.cross(along, down))
        middle = sum(
            (n - 1) / 2 * mm * way for n, mm, way in zip(self.size, SPACING, steps, strict=True)
        )
        indices = (column, row, at)
        place = sum(
            np.multiply.outer(np.asarray(index) * mm, way)
            for index, mm, way in zip(indices, SPACING, steps, strict=True)
        )
        return place - middle + np.multiply.outer(np.asarray(at), self.shift)

    def images(self) -> list[Dataset]:
        """The images, from the first slice along the normal to the last."""
        return [self._image(at) for at in range(self.size[2])]

    def write(self, folder: Path, *, name: str = "IM{:04}") -> list[Path]:
        """Write the images under names that do not follow their order; the files in their order."""
        folder.mkdir(parents=True, exist_ok=True)
        images = self.images()
        files = [folder / name.format((7 * at) % 101) for at in range(len(images))]
        for image, file in zip(images, files, strict=True):
            image.save_as(file, enforce_file_format=True)
        return files

    def _image(self, at: int) -> Dataset:
        columns, rows, _ = self.size
        row, column = np.mgrid[:rows, :columns]
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = CTImageStorage
        image.SOPInstanceUID = generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = self.study, self.uid
        image.FrameOfReferenceUID = self.space
        image.PatientName, image.PatientID, image.AccessionNumber = NAME, PATIENT_ID, ACCESSION
        image.PatientBirthDate, image.PatientSex, image.StudyID = "19700101", "F", "1"
        image.StudyDate, image.StudyTime, image.ReferringPhysicianName = "20260101", "120000", ""
        image.ContentDate, image.ContentTime = "20260101", "120000"
        image.AcquisitionNumber, image.KVP, image.PositionReferenceIndicator = 1, "120", ""
        image.Modality, image.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.Manufacturer, image.PatientPosition = "none", "HFS"
        image.SeriesDescription, image.InstanceNumber = self.description, self.size[2] - at
        if self.number is not None:
            image.SeriesNumber = self.number
        image.Rows, image.Columns = rows, columns
        image.ImagePositionPatient = [float(f"{mm:.6f}") for mm in self.position(at=at)]
        image.ImageOrientationPatient = list(self.axes)
        image.PixelSpacing, image.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.PixelRepresentation = 0
        image.RescaleSlope, image.RescaleIntercept, image.RescaleType = "1", "-1024", "HU"
        hu = hounsfield(self.position(column=column, row=row, at=at))
        image.PixelData = (hu + 1024).astype("<u2").tobytes()
        for keyword, value in self.change.items():
            if value is None:
                del image[keyword]
            else:
                setattr(image, keyword, value)
        return image
