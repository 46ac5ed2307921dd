"""Programs in a terminal, and what it showed as a picture (SVG, drawn by rich)."""

import io
import os
import pty
import re
import shlex
import struct
import subprocess
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from fcntl import ioctl
from itertools import groupby
from pathlib import Path

import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, LINES = 110, 50
# Fonts of another host, which a picture in a page would not be given anyway.
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
_COLORS = {"brown": "yellow"}  # what pyte calls it


@dataclass(frozen=True)
class Shown:
    """What a command showed: a prompt with its line, and all that it wrote, piece by piece."""

    line: str
    pieces: list[str]

    def last(self) -> list[Text]:
        """The screen at its end."""
        return self._screen(len(self.pieces))

    def last_with(self, words: str) -> list[Text]:
        """The last screen with these words on it.

        Raises:
            ValueError: No screen had them.
        """
        for n in range(len(self.pieces), 0, -1):
            screen = self._screen(n)
            if any(words in row.plain for row in screen):
                return screen
        raise ValueError(f"{self.line!r} never showed {words!r}")

    def _screen(self, n: int) -> list[Text]:
        screen = pyte.Screen(COLUMNS, LINES)
        pyte.Stream(screen).feed("".join(self.pieces[:n]))
        rows = [_row(screen, y) for y in range(LINES)]
        while rows and not rows[-1].plain:
            rows.pop()
        return [Text.assemble(("$ ", "bold green"), self.line), *rows]


@dataclass(frozen=True)
class Shell:
    """Runs commands in a terminal.

    Attributes:
        folder: Where they run.
        environment: Theirs.
        instead: What to show instead of each path of this machine.
    """

    folder: Path
    environment: Mapping[str, str]
    instead: Mapping[str, str]

    def run(self, line: str) -> Shown:
        """Run a command to its end."""
        ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        environment = {**self.environment, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
        process = subprocess.Popen(
            shlex.split(line),
            cwd=self.folder,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        pieces = []
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # the last writer has closed the terminal
                break
            pieces.append(self._without_paths(piece.decode()))
        os.close(ours)
        process.wait()
        return Shown(line, pieces)

    def _without_paths(self, text: str) -> str:
        for path in sorted(self.instead, key=len, reverse=True):
            text = text.replace(path, self.instead[path])
        return text


def svg(rows: list[Text]) -> str:
    """A picture of these rows."""
    console = Console(
        width=max(80, *(row.cell_len + 1 for row in rows)),
        file=io.StringIO(),
        record=True,
        force_terminal=True,
        color_system="truecolor",
    )
    for row in rows:
        console.print(row, no_wrap=True, highlight=False, overflow="ignore", crop=False)
    return console.export_svg(title="", code_format=_FORMAT)


def _row(screen: pyte.Screen, y: int) -> Text:
    row = Text()
    cells = [screen.buffer[y][x] for x in range(COLUMNS)]
    for (fg, bg, bold), alike in groupby(cells, lambda cell: (cell.fg, cell.bg, cell.bold)):
        style = Style(color=_color(fg), bgcolor=_color(bg), bold=bold)
        row.append("".join(cell.data for cell in alike), style)
    row.rstrip()
    return row


def _color(name: str) -> str | None:
    """A colour as rich calls it; pyte has `default`, a name, `bright...` or six hex digits."""
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    name = _COLORS.get(name, name)
    return f"bright_{name.removeprefix('bright')}" if name.startswith("bright") else name
