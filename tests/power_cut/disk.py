"""Records what a server syncs, and builds what its disk may hold after a power cut."""

import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Names = Literal["synced", "all", "mixed"]
"""Which names survive: those at the last sync of their folder, those at the moment of the power
cut, or for each folder one or the other at random."""


def compile_shim(folder: Path) -> Path:
    """Compile the library that records what is synced."""
    library = folder / "power_cut.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(
        ["cc", "-Wall", "-Werror", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"],
        check=True,
    )
    return library


@dataclass
class WatchedDisk:
    """The disk below one folder."""

    root: Path
    notes: Path
    library: Path

    def __post_init__(self) -> None:
        self.notes.mkdir()
        self._sync([self.root], self.notes)
        (names,) = self.notes.iterdir()
        self._identity = names.name.removesuffix(".names")

    def watched(self, notes: Path | None = None) -> tuple[str, ...]:
        """What to put before a command to record what it syncs."""
        return (
            "env",
            f"LD_PRELOAD={self.library}",
            f"POWER_CUT_ROOT={self.root}",
            f"POWER_CUT_NOTES={notes or self.notes}",
        )

    def _sync(self, paths: list[Path], notes: Path) -> None:
        subprocess.run([*self.watched(notes), "sync", *paths], check=True)

    def sync_all(self, notes: Path | None = None) -> None:
        """Record everything as it is now."""
        self._sync([self.root, *self.root.rglob("*")], notes or self.notes)

    def after_a_cut(self, target: Path, names: Names, rng: random.Random) -> None:
        """Build as `target` what the disk may hold if the power fails now.

        A file has the content of its last sync. One that was never synced is empty, contains zeros
        or ends early.
        """
        now = target.with_name(f"{target.name}.now")
        now.mkdir()
        self.sync_all(now)

        def names_in(folder: str) -> Path:
            survives = names if names != "mixed" else rng.choice(("synced", "all"))
            return (self.notes if survives == "synced" else now) / f"{folder}.names"

        def write(file: str, path: Path) -> None:
            synced, written = self.notes / file, now / file
            if synced.exists():
                shutil.copyfile(synced, path)
                return
            content = written.read_bytes() if written.exists() else b""
            path.write_bytes(rng.choice((b"", bytes(len(content)), content[: len(content) // 2])))

        _build(self._identity, target, names_in, write)
        shutil.rmtree(now)


def _build(
    identity: str,
    target: Path,
    names_in: Callable[[str], Path],
    write: Callable[[str, Path], None],
) -> None:
    target.mkdir()
    listing = names_in(identity)
    for line in listing.read_bytes().split(b"\0")[:-1] if listing.exists() else ():
        child, kind, name = line.decode().split(" ", 2)
        if kind == "d":
            _build(child, target / name, names_in, write)
        else:
            write(child, target / name)
