"""Exits with code 0 without writing anything."""

from common import arguments

(arguments().outputdir / "inference").mkdir(parents=True)
