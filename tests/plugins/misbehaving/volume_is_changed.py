"""Writes into its volume."""

from pathlib import Path

from common import segment

segment()
with Path("input/imagesTs/input.nii.gz").open("ab") as volume:
    volume.write(bytes(1000))
