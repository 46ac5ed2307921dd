"""Build the manual, for the server to show: `python -m tools.manual`, or `make docs`."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.manual import site, sources

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).parent


def main() -> int:
    """Collect the pages, build them, and put the site in the place of the one that was there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "pfms" / "manual", help="default: pfms/manual"
    )
    out: Path = parser.parse_args().out.absolute()
    with TemporaryDirectory() as made:
        folder = Path(made)
        sources.collect(ROOT, folder / "docs")
        shutil.copy(HERE / "zensical.toml", folder)
        shutil.copy(HERE / "extra.css", folder / "docs")
        zensical = [sys.executable, "-m", "zensical", "build", "--strict"]
        built = subprocess.run(zensical, cwd=folder, capture_output=True, text=True)
        if built.returncode:
            print(built.stdout, built.stderr, file=sys.stderr)
            return built.returncode
        site.finish(folder / "site")
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(folder / "site", out)
    print(f"the manual is in {out}: a server shows it at /manual")
    return 0


if __name__ == "__main__":
    sys.exit(main())
