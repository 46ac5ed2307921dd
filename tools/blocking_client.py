"""Make the blocking client from the asynchronous one: `python -m tools.blocking_client`.

The two differ only in words such as `await`; a test checks that what is in the repository is what
this makes.
"""

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parent.parent / "pfms" / "client"
MADE = {"client.py": "async_client.py", "transport.py": "async_transport.py"}

_WORDS = (
    (r'"""The client, for programs that use asyncio or trio\.', '"""The client.'),
    (
        r"`client\.py` is made from this file, and .*?: change these two\.",
        "Made from `async_client.py` by `python -m tools.blocking_client`: change that one.",
    ),
    (r"import anyio\n", "import time\n"),
    (r"from anyio\.to_thread import run_sync\n", ""),
    (r"await run_sync\((\w+), ", r"\1("),
    (r"anyio\.sleep", "time.sleep"),
    (r"Callable\[\[\], Awaitable\[T\]\]", "Callable[[], T]"),
    (r", Awaitable\b", ""),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\basync_(client|transport)\b", r"\1"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"AsyncGenerator\[(.+?), None\]", r"Generator[\1, None, None]"),
    (r"\bAsync(Client|Generator|Iterator|Transport)\b", r"\1"),
    (r"\ba(close|closing|read|iter_bytes|iter_lines)\b", r"\1"),
    (r"\[(\w+) for \1 in (\w+)\]", r"\2"),  # of a comprehension, its iterable is left
)


def made_from(source: str) -> str:
    """The blocking twin of a module, formatted."""
    for pattern, words in _WORDS:
        source = re.sub(pattern, words, source, flags=re.DOTALL)
    ruff = [sys.executable, "-m", "ruff"]
    for step in (
        ["check", "--select", "I", "--fix", "--quiet", "--stdin-filename", "pfms/client/x.py", "-"],
        ["format", "--stdin-filename", "pfms/client/x.py", "-"],
    ):
        ended = subprocess.run(
            [*ruff, *step],
            input=source,
            cwd=CLIENT.parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        source = ended.stdout
    return source


def main() -> None:
    """Write both modules."""
    for name, source in MADE.items():
        (CLIENT / name).write_text(made_from((CLIENT / source).read_text()))


if __name__ == "__main__":
    main()
