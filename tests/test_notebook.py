"""The notebook of the examples runs, in a kernel of its own, against a real server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.command import environment
from tests.conftest import ROOT, StartServer

NOTEBOOK = ROOT / "examples" / "segment.ipynb"
RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], nbformat.NO_CONVERT)
nbclient.NotebookClient(notebook, timeout=90, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""


def test_the_notebook_runs_from_top_to_bottom(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    for name in ("segment.ipynb", "phantoms.py", "demo_model.pth"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    own = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython")}

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, "segment.ipynb"],
        cwd=tmp_path,
        env=environment(server=server.url) | own,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    shown = (tmp_path / "segment.ipynb").read_text()
    assert "not-a-nifti" in shown
    assert "image/png" in shown
    assert len(server.job_folders()) == 5


def test_no_output_of_the_notebook_is_kept() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
