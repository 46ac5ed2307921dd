"""Looks up every version in constraints.txt in the database of known weaknesses (OSV).

`make audit` runs it. It needs the network: pip-audit is installed into a venv of its own, since
pfms itself does not need it. Exit codes: 0 nothing is known, 1 something is, 2 nothing was audited.
"""

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACE = ROOT / ".venv" / "audit"
PIP_AUDIT = "pip-audit==2.10.1"


def main() -> int:
    """Audit, and say plainly if that was not possible."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", nargs="+", help="instead of pip-audit in a venv of its own")
    program = parser.parse_args().program
    if program is None:
        program = [str(PLACE / "bin" / "pip-audit")]
        if not Path(program[0]).exists():
            venv.create(PLACE, with_pip=True)
            pip = [str(PLACE / "bin" / "pip"), "install", "--quiet", PIP_AUDIT]
            if subprocess.run(pip, check=False).returncode:
                return _not_audited(f"{PIP_AUDIT} cannot be installed")
    # The versions are complete and exact, so pip need not resolve them.
    how = ["--vulnerability-service", "osv", "--strict", "--no-deps", "--disable-pip"]
    run = subprocess.run(
        [*program, *how, "--requirement", str(ROOT / "constraints.txt")],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    said = run.stderr.strip().splitlines()
    if run.returncode == 0 or any(line.startswith("Found ") for line in said):
        print(run.stderr, file=sys.stderr, end="")
        return int(run.returncode != 0)
    return _not_audited(said[-1][:300] if said else f"pip-audit ended with {run.returncode}")


def _not_audited(why: str) -> int:
    print(f"Nothing was audited, which says nothing about the versions: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
