"""Writes 20,000 files into one folder."""

from common import segment
from places import OUTPUT

segment()
for number in range(20_000):
    (OUTPUT / str(number)).touch()
