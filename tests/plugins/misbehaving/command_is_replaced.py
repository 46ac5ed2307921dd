"""Replaces the script that people run to repeat its job."""

from common import segment
from places import COMMAND

segment()
COMMAND.write_text("#!/bin/sh\necho caught\n")
