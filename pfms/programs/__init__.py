"""Separate programs, started by their path: nothing in them imports pfms."""

from pathlib import Path

KEEPER = Path(__file__).with_name("keeper.py")
WARM_PARENT = Path(__file__).with_name("warm_parent.py")
WEIGHTS_CHILD = Path(__file__).with_name("weights_child.py")
