"""Diagrams, drawn from their Mermaid source by Mermaid's own program."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

MERMAID = "@mermaid-js/mermaid-cli@11.17.0"
_CONFIG = {"theme": "neutral", "htmlLabels": False, "flowchart": {"htmlLabels": False}}


def chromium() -> str:
    """The Chromium of this machine.

    Raises:
        SystemExit: There is none.
    """
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        raise SystemExit("Pictures of pages and diagrams need Chromium: install it.")
    return found


def draw(source: str, target: Path) -> None:
    """Write the SVG of a diagram. It needs npm, and a Chromium that is installed."""
    npx = shutil.which("npx")
    if npx is None:
        raise SystemExit("Diagrams are drawn by a program that npm fetches: install npm.")
    with TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "diagram.mmd").write_text(source)
        (folder / "config.json").write_text(json.dumps(_CONFIG))
        browser = {"executablePath": chromium(), "args": ["--no-sandbox"]}  # only our own text
        (folder / "browser.json").write_text(json.dumps(browser))
        drawing = [npx, "--yes", MERMAID, "-i", "diagram.mmd", "-o", str(target)]
        options = ["-c", "config.json", "-p", "browser.json", "-b", "white"]
        environment = {**os.environ, "PUPPETEER_SKIP_DOWNLOAD": "1"}  # of another Chromium
        subprocess.run([*drawing, *options], cwd=folder, env=environment, check=True)
