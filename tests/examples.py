"""How the examples of the documentation are run: each page's, in order, against a real server.

The line before each block of `sh` or `python` says `<!-- run -->`, or `<!-- not run: REASON -->`.
In the folder where a page runs there are `ct.nii.gz`, `model.pth` and a folder `incoming` as the
plugin takes it; the server has the models `demo` and `myspleen`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

from tests.conftest import ROOT, Server, nifti_bytes

BLOCK = re.compile(
    r"^(?P<before>[^\n]*)\n(?P<indent> *)```(?P<language>sh|python)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r" *<!-- (run|not run: .+) -->")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md"]
REAL = ROOT / "docs" / "debugging.md"  # what it shows is what the real plugin does
Block = tuple[str, str]  # its language, its code


def blocks(page: Path) -> list[Block]:
    """Those that run."""
    return [
        (found["language"], dedent(found["code"]))
        for found in BLOCK.finditer(page.read_text())
        if found["before"].strip() == "<!-- run -->"
    ]


def script(these: list[Block]) -> str:
    """One shell script, so that a block may use a variable that an earlier one has set."""
    lines = ["set -eu"]
    for n, (language, code) in enumerate(these, 1):
        lines.append(f"echo '== example {n}' >&2")
        lines.append(f"python - <<'END'\n{code}END\n" if language == "python" else code)
    return "\n".join(lines)


def run(code: str, server: Server, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as a reader would who serves on the usual port."""
    (folder / "incoming" / "imagesTs").mkdir(parents=True)
    for place in ("ct.nii.gz", "incoming/imagesTs/ct.nii.gz"):
        (folder / place).write_bytes(nifti_bytes())
    shutil.copy(ROOT / "examples" / "demo_model.pth", folder / "model.pth")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / ".venv").symlink_to(sys.prefix)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PFMS_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "PFMS_SERVER": server.url,
    }
    return subprocess.run(
        ["bash", "-c", code.replace("http://127.0.0.1:2024", server.url)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
