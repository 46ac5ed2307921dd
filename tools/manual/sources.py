"""What the manual is built from: docs/, pages and files beside it, and what is made from the code.

The pages' links are written as they hold in the clone; here they become links of the manual.
"""

import hashlib
import posixpath
import re
import shutil
from pathlib import Path

from tools.manual import reference

# Pages that are not in docs/, and their place in the manual.
PAGES = {
    "README.md": "index.md",
    "examples/README.md": "examples.md",
    "workspace/README.md": "workspace.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
MADE = {"calls": reference.calls, "errors": reference.errors}
DIAGRAM = re.compile(r"^```mermaid\n(.+?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def picture_of(diagram: str) -> str:
    """Where in docs/ the picture of a diagram is, which changes with its Mermaid source."""
    return f"pictures/diagram-{hashlib.sha256(diagram.encode()).hexdigest()[:12]}.svg"


def collect(clone: Path, folder: Path) -> None:
    """Write all pages, and the files that they link to, into a new folder."""
    pages = {f"docs/{page.name}": page.name for page in (clone / "docs").glob("*.md")} | PAGES
    for source, place in pages.items():
        text = (clone / source).read_text()
        for name, make in MADE.items():
            text = text.replace(f"<!-- made from the code: {name} -->", make())

        text = DIAGRAM.sub(lambda found: _drawn(found, clone), text)

        def moved(match: re.Match[str], source: str = source) -> str:
            image, words, target, anchor = match.groups(default="")
            found = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            if (clone / found).is_dir():
                return words  # a folder is no page
            there = pages.get(found) or found.removeprefix("docs/")
            if found not in pages:
                (folder / there).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(clone / found, folder / there)
            return f"{image}[{words}]({there}{anchor})"

        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(_LINK.sub(moved, text))


def _drawn(diagram: re.Match[str], clone: Path) -> str:
    """The picture of a diagram, so that no page needs a script; its source if there is none."""
    picture = picture_of(diagram[1])
    return f"![diagram]({picture})" if (clone / "docs" / picture).exists() else diagram[0]
