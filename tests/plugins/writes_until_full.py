"""Writes until the disk is full, then fails as any program does."""

from common import arguments

folder = arguments().outputdir / "inference"
folder.mkdir()
with (folder / "orig.nii.gz").open("wb", buffering=0) as file:
    while True:
        file.write(bytes(1 << 16))
