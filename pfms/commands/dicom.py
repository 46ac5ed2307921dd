"""What a command sends of a volume that may be a DICOM series, and what it makes of the result."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pfms.client.problems import Json
from pfms.client.updates import OnUpdate, Update
from pfms.commands.volumes import Task

if TYPE_CHECKING:
    from pfms.local.dicom_volume import Stack


class Source:
    """The volume of a task.

    Attributes:
        volume: What is sent: a file, or the bytes of the NIfTI that a DICOM series was made into.

    Raises:
        CannotConvert: The series is no volume.
    """

    def __init__(self, task: Task, on_update: OnUpdate) -> None:
        self._task = task
        self._stack: Stack | None = None
        self.volume: Path | bytes = task.volume
        if task.series is not None:
            from pfms.local.dicom_volume import stack_of

            on_update(Update("converting"))
            self._stack = stack_of(task.series)
            self.volume = self._stack.nifti()

    def sha256(self) -> str:
        """The checksum of what is sent."""
        if isinstance(self.volume, bytes):
            return hashlib.sha256(self.volume).hexdigest()
        with self.volume.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def save_seg(self, model: str, job: Json | None) -> list[str]:
        """Write the result of a DICOM series, which has been saved, as DICOM SEG beside it.

        Returns:
            What is to be said about it.

        Raises:
            CannotConvert: It does not belong to the series.
        """
        from pfms.local.dicom_seg import write_seg

        if self._stack is None:
            raise TypeError(f"{self._task.volume} is no DICOM series")
        voxels = write_seg(self._stack, self._task.target, self._task.seg, model, job)
        return [] if voxels else ["the DICOM SEG is empty, because no spleen was found"]
