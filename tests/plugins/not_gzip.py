"""Its result is not NIfTI."""

from common import arguments

folder = arguments().outputdir / "inference" / "input"
folder.mkdir(parents=True)
(folder / "input_seg.nii.gz").write_bytes(b"this is not a segmentation" * 100)
