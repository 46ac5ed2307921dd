"""Writes the corpus into a folder: `python -m tests.hostile FOLDER`."""

import sys
from pathlib import Path

from tests.hostile.requests import REQUESTS
from tests.hostile.volumes import volumes
from tests.hostile.weights import weights


def main(folder: Path) -> None:
    sentinel = folder / "code-was-run"
    parts = {
        "volumes": [(each.name, each.content) for each in volumes()],
        "weights": [(each.name, each.content) for each in weights(sentinel)],
        "requests": list(REQUESTS.items()),
    }
    for part, files in parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number, (name, content) in enumerate(files):
            tame = "".join(letter if letter.isalnum() else "-" for letter in name)[:80]
            (folder / part / f"{number:03}-{tame}").write_bytes(content)
        print(f"{len(files)} {part}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
