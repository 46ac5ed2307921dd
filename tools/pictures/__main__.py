"""Make the pictures of the manual, and the answers that it shows: `make pictures`.

Of the terminal: the real commands, with the real plugin, on a phantom. Of diagrams: what their
Mermaid source in docs/ says, for which this needs npm and Chromium. None of it is made
by hand.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.manual import reference
from tools.manual.sources import DIAGRAM, picture_of
from tools.pictures import answers, browser, diagrams, terminal

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "docs" / "pictures"
BIN = Path(sys.executable).parent


def main() -> int:
    """Make them all."""
    OUT.mkdir(exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    for page in (ROOT / "docs").glob("*.md"):
        for found in DIAGRAM.finditer(page.read_text()):
            diagrams.draw(found[1], ROOT / "docs" / picture_of(found[1]))
    with TemporaryDirectory() as made:
        for name, content in of_the_terminal(Path(made)):
            (OUT / f"{name}.svg").write_text(content)
    for each in sorted(OUT.iterdir()):
        print(f"docs/pictures/{each.name}: {each.stat().st_size // 1000} kB")
    return 0


def of_the_terminal(folder: Path) -> Iterator[tuple[str, str]]:
    """The name and content of each picture."""
    phantom = [sys.executable, str(ROOT / "examples" / "phantoms.py"), str(folder), "--seed", "7"]
    subprocess.run(phantom, check=True, stdout=subprocess.DEVNULL)
    (folder / "phantom-7.nii.gz").rename(folder / "ct.nii.gz")
    model = ROOT / "examples" / "demo_model.pth"
    (folder / "model.pth").write_bytes(model.read_bytes())
    with serving(folder) as url:
        shell = terminal.Shell(
            folder,
            {
                **os.environ,
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "HOME": str(folder),
                "PFMS_SERVER": url,
                "PFMS_WORKSPACE": "workspace",
            },
            {str(ROOT): "~/pfms", str(BIN): "~/pfms/.venv/bin", str(folder): "~"},
        )
        model_added = shell.run("pfms models add model.pth --id myspleen")
        segmented = shell.run("pfms infer ct.nii.gz --model myspleen -o spleen.nii.gz")
        yield "infer", terminal.svg(model_added.last() + segmented.last())
        yield "progress", terminal.svg(segmented.last_with("segmenting"))
        yield "jobs", terminal.svg(shell.run("pfms jobs list").last())
        yield "doctor", terminal.svg(shell.run("pfms doctor --port 0").last())
        browser.picture_of_a_run(url, folder / "ct.nii.gz", "myspleen", OUT / "page.png")
        found = answers.record(url, folder, shell.instead)
        reference.ANSWERS.write_text(json.dumps(found, indent=2) + "\n")
    yield "demo", terminal.svg(shell.run("pfms demo").last())


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of a server with the real plugin, while it runs."""
    server = subprocess.Popen(
        [str(BIN / "pfms"), "serve", "--port", "0", "--workspace", str(folder / "workspace")],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout
    try:
        yield server.stdout.readline().split()[3]
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
