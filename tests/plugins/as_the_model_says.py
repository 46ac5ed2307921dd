"""Does what another fake plugin does: the content of the weights file is its name, or its path."""

import runpy
import sys
from pathlib import Path

name = Path("input/model.pth").read_text()
if name == "weights":  # the content of the model `demo` of tests/conftest.py
    name = "ok"
plugin = Path(__file__).parent / f"{name}.py"
sys.path.insert(0, str(plugin.parent))
sys.argv[0] = str(plugin)
runpy.run_path(sys.argv[0], run_name="__main__")
