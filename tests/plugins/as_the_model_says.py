"""Does what another fake plugin does: the content of the weights file is its name."""

import runpy
import sys
from pathlib import Path

name = Path("input/model.pth").read_text()
if name == "weights":  # the content of the model `demo` of tests/conftest.py
    name = "ok"
sys.argv[0] = str(Path(__file__).with_name(f"{name}.py"))
runpy.run_path(sys.argv[0], run_name="__main__")
