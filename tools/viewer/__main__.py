"""Fetch the viewer of the page with npm: `python -m tools.viewer`, or `make viewer`.

Without npm, or without a registry that it can reach, it says so and leaves the page as it is: the
page then shows the server's pictures alone.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).parent
# Modules without imports, as their makers publish them; and what their licences ask to be said.
_FILES = {
    "niivue.js": ("@niivue/niivue", "dist/index.js"),
    "fflate.js": ("fflate", "esm/browser.js"),
}
_WITHOUT = "The page shows the server's pictures only. Then: make viewer"


def main() -> int:
    """Install the locked versions in a folder of their own, and take from it what is served."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "pfms" / "page" / "vendor",
        help="default: pfms/page/vendor",
    )
    out: Path = parser.parse_args().out.absolute()
    npm = shutil.which("npm")
    if npm is None:
        print(f"npm was not found: install it for the viewer. {_WITHOUT}", file=sys.stderr)
        return 0
    with TemporaryDirectory() as made:
        folder = Path(made)
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(HERE / name, folder)
        ask = [npm, "ci", "--omit=optional", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(ask, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            print(f"npm failed: {done.stderr.strip()}\n{_WITHOUT}", file=sys.stderr)
            return 0
        (folder / "vendor").mkdir()
        for name, (package, path) in _FILES.items():
            (folder / "vendor" / name).write_text(_taken(folder / "node_modules" / package, path))
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(folder / "vendor", out)
    print(f"the viewer is in {out}")
    return 0


def _taken(package: Path, path: str) -> str:
    about = json.loads((package / "package.json").read_text())
    lines = (package / path).read_text().split("\n")
    # Its map is not served, and a browser's tools would ask for it.
    text = "\n".join(line for line in lines if not line.startswith("//# sourceMapping"))
    said = f"{about['name']} {about['version']}, {about['license']} licence, {about['homepage']}"
    return f"/*! {said} */\n{text}"


if __name__ == "__main__":
    sys.exit(main())
