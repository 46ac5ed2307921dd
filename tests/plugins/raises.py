"""Ends with a Python error that names a path of this machine."""

from pathlib import Path

from common import arguments

raise ValueError(f"cannot read '{Path(arguments().inputdir, 'imagesTs').resolve()}/input.nii.gz'")
