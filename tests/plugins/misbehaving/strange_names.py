"""Writes files with names that could be taken for something else."""

from common import segment
from places import OUTPUT

segment()
for name in ("line\nbreak", "..\n", "back\\slash", "-rf", "*", "$(touch caught)", "\udcff", " "):
    (OUTPUT / name).write_text("x")
    (OUTPUT / f"{name}{name}").mkdir()
