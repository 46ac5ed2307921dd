"""What a built site needs before the server shows it."""

import hashlib
import re
from pathlib import Path

_SCRIPT = re.compile(r"<script>(.+?)</script>", re.DOTALL)


def finish(site: Path) -> None:
    """Move scripts out of the pages: the server's Content-Security-Policy runs only files."""

    def moved(match: re.Match[str]) -> str:
        script = match[1]
        name = f"assets/javascripts/{hashlib.sha256(script.encode()).hexdigest()[:12]}.js"
        (site / name).write_text(script)
        return f'<script src="{name}"></script>'

    for leftover in ("404.html", "sitemap.xml"):  # for a site of its own, not a part of one
        (site / leftover).unlink()
    for page in site.glob("*.html"):
        page.write_text(_SCRIPT.sub(moved, page.read_text()))
