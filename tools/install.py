"""Build a virtual environment with pfms and the plugin: the one way, for users, CI and the image.

Needs only Python 3.11 or 3.12 with pip. The Makefile and the Dockerfile call it.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
SUPPORTED = ((3, 11), (3, 12))
# A file in the environment: which index torch came from, so that later installs stay with it.
TORCH_INDEX_NOTE = ".torch-index"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="default: .venv")
    parser.add_argument(
        "--extras", default="server,plugin,dicom,dev,docs", help="of pyproject.toml (default: all)"
    )
    parser.add_argument("--torch-index", default="", help="index for torch (PyTorch's CPU build)")
    return parser


def main() -> int:
    """Make the environment, then install torch, the plugin without its extras, and pfms."""
    options = arguments().parse_args()
    if sys.version_info[:2] not in SUPPORTED:
        version = ".".join(str(n) for n in sys.version_info[:3])
        return failed(
            f"pfms needs Python 3.11 or 3.12, this is {version}: make PYTHON=/path/to/python3.11", 2
        )

    venv: Path = options.venv.absolute()
    python = venv / "bin" / "python"
    note = venv / TORCH_INDEX_NOTE
    noted = note.read_text() if note.exists() else ""
    index = options.torch_index or noted
    try:
        # To pip, 2.13.0 and 2.13.0+cpu are the same torch: another index needs a new environment.
        if index != noted or not has_pip(python):
            say(f"creating {venv} ...")
            create(venv, python)
        say("installing torch (large; once) ...")
        pip_install(python, "torch", index=index)
        note.write_text(index)
        say("installing the plugin, pfms and their libraries ...")
        # Its metadata requires mlflow, clearml, transformers ...: nothing that it imports.
        pip_install(python, "--no-deps", "spleenseg")
        # ... and pip would warn that all of that is missing.
        pip_install(python, "--no-warn-conflicts", "--editable", f"{ROOT}[{options.extras}]")
    except subprocess.CalledProcessError as error:
        return failed(
            f"failed (exit {error.returncode}): the message is above. "
            "Fix that and run the same command again; what is installed is kept.",
            1,
        )
    say(f"ready: {venv}")
    return 0


def has_pip(python: Path) -> bool:
    """Also False if an earlier try was interrupted, or the Python that made it is gone."""
    try:
        return subprocess.run([python, "-c", "import pip"], capture_output=True).returncode == 0
    except OSError:
        return False


def create(venv: Path, python: Path) -> None:
    """Make a new environment with pip in it, whatever was there."""
    make = [sys.executable, "-m", "venv", "--clear", str(venv)]
    if importlib.util.find_spec("ensurepip"):
        subprocess.run(make, check=True)
    else:  # Debian keeps it in a package of its own, which pip does not need
        subprocess.run([*make, "--without-pip"], check=True)
        ours = [sys.executable, "-m", "pip", "--python", str(python)]
        subprocess.run([*ours, "install", "--quiet", "pip"], check=True)


def pip_install(python: Path, *what: str, index: str = "") -> None:
    """Run the environment's pip, held to the pinned versions."""
    # By environment variable, so that they also apply to the build environment of pfms itself; as
    # URLs, because pip splits the variable at spaces.
    env = {
        **os.environ,
        "PIP_CONSTRAINT": CONSTRAINTS.as_uri(),
        "PIP_BUILD_CONSTRAINT": CONSTRAINTS.as_uri(),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_USER": "0",
    }
    if index:
        env["PIP_EXTRA_INDEX_URL"] = f"{env.get('PIP_EXTRA_INDEX_URL', '')} {index}".strip()
    subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True, env=env)


def say(line: str) -> None:
    """Print a line, ahead of pip's output."""
    print(line, flush=True)


def failed(line: str, code: int) -> int:
    """Say why, and return the exit code."""
    print(line, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
