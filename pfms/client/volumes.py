"""The volumes that a client takes, and the segmentation that it gives. nibabel is optional."""

import gzip
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from pfms.client.problems import Json

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image
    from nibabel.spatialimages import SpatialImage

Volume: TypeAlias = "str | os.PathLike[str] | bytes | SpatialImage"

_GZIP = b"\x1f\x8b"


class Sendable:
    """A volume that can be sent more than once.

    Args:
        volume: The path of a NIfTI file, its bytes (plain or gzipped), or an image of nibabel.

    Raises:
        TypeError: It is something else.
    """

    def __init__(self, volume: Volume) -> None:
        self._path: Path | None = None
        self._content = b""
        if isinstance(volume, str | os.PathLike):
            self._path = Path(volume)
        elif isinstance(volume, bytes | bytearray | memoryview):
            self._content = bytes(volume)
        elif hasattr(volume, "get_fdata"):
            self._content = _packed(volume)
        else:
            kind = type(volume).__name__
            raise TypeError(f"a volume is a path, bytes or an image of nibabel, not {kind}")

    def open(self) -> BinaryIO:
        """Its file, from the start."""
        return self._path.open("rb") if self._path else io.BytesIO(self._content)


def _packed(image: Any) -> bytes:
    """An image as a gzipped NIfTI, the same bytes each time."""
    from nibabel.nifti1 import Nifti1Image

    if not isinstance(image, Nifti1Image):  # MGH, MINC, a pair of files ...
        image = Nifti1Image.from_image(image)
    return gzip.compress(image.to_bytes(), 1, mtime=0)


@dataclass(frozen=True)
class Segmentation:
    """What a run has made.

    Attributes:
        content: The file: NIfTI, gzipped.
        job: The job as it ended; None from a server that keeps no jobs.
    """

    content: bytes = field(repr=False)
    job: Json | None

    @property
    def image(self) -> "Nifti1Image":
        """The labels as an image of nibabel: 0 background and 1 spleen, on the volume's own grid.

        Raises:
            ModuleNotFoundError: nibabel is not installed.
        """
        try:
            from nibabel.nifti1 import Nifti1Image
        except ModuleNotFoundError as error:
            message = "an image needs nibabel: pip install 'pfms[nibabel]'"
            raise ModuleNotFoundError(message, name=error.name) from None
        raw = gzip.decompress(self.content) if self.content[:2] == _GZIP else self.content
        return Nifti1Image.from_bytes(raw)

    @property
    def ml(self) -> float | None:
        """Volume of the spleen in millilitres; None from a server that keeps no jobs."""
        return None if self.job is None else self.job["segmentation"]["spleen_ml"]

    @property
    def warnings(self) -> list[str]:
        """What the server remarked about the volume or the run."""
        return [] if self.job is None else list(self.job["warnings"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file."""
        Path(path).write_bytes(self.content)
