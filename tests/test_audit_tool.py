"""`make audit` tells apart: nothing known, something known, and no data to be had."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "audit.py"
CLEAN = "import sys; sys.exit('--strict' not in sys.argv)"
FOUND = "import sys; print('Found 1 known vulnerability in 1 package', file=sys.stderr); exit(1)"
NO_DATA = "raise ConnectionError('Failed to resolve the host')"


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [(CLEAN, 0, ""), (FOUND, 1, "Found 1"), (NO_DATA, 2, "Nothing was audited")],
    ids=["clean", "found", "no data"],
)
def test_no_data_is_not_taken_for_no_weakness(
    program: str, code: int, words: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(program)
    run = subprocess.run(
        [sys.executable, TOOL, "--program", sys.executable, tmp_path / "program.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code, run.stderr
    assert words in run.stderr
