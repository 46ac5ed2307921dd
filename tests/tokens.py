"""Tokens for the tests: made by the command, as an operator makes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.command import pfms


def add(file: Path, name: str, *scopes: str, until: str | None = None) -> str:
    """Add a token to a file; returns it."""
    line: list[str] = [word for scope in scopes or ("infer",) for word in ("--scope", scope)]
    line += ["--until", until] if until else []
    token: str = command(file, "add", name, *line)["token"]
    return token


def command(file: Path, *words: str, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Run `pfms tokens`; what it prints."""
    said = pfms("tokens", *words, "--json", *extra, cwd=file.parent, tokens_file=str(file)).stdout
    printed: dict[str, Any] = json.loads(said)
    return printed


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
