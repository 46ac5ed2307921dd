"""A real browser for the tests of the page: Debian's Chromium, headless, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.conftest import Server

# WebGL without a GPU; no calls of the browser's own to its maker.
expect.set_options(timeout=20_000)
_OPTIONS = [
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
    *("--no-sandbox", "--disable-background-networking", "--disable-component-update"),
]


@contextmanager
def a_browser() -> Iterator[Browser]:
    """Chromium; skips where there is none, but not in CI."""
    program = shutil.which("chromium")
    if program is None:
        assert "CI" not in os.environ, "CI needs chromium"
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_OPTIONS)
        yield browser
        browser.close()


@dataclass
class Tab:
    """A tab of its own session with the page of a server, and what happened in it."""

    server: Server
    page: Page
    asked: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def open(self, path: str = "/") -> "Tab":
        self.page.goto(f"{self.server.url}{path}")
        return self

    def drop(self, **files: bytes) -> None:
        """Drop files on the page, as a person does with the mouse."""
        transfer = self.page.evaluate_handle(
            """(files) => {
                const transfer = new DataTransfer();
                for (const [name, bytes] of files) {
                    transfer.items.add(new File([new Uint8Array(bytes)], name));
                }
                return transfer;
            }""",
            [[name.replace("__", "."), list(content)] for name, content in files.items()],
        )
        self.page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer})
        self.page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})

    def check_clean(self) -> None:
        """Nothing went to another host, and nothing broke or was blocked by the page's policy."""
        host = urlsplit(self.server.url).netloc
        others = {url for url in self.asked if urlsplit(url).netloc not in (host, "")}
        assert others == set()
        assert self.broken == []


@contextmanager
def a_tab(browser: Browser, server: Server, folder: Path, **options: Any) -> Iterator[Tab]:
    """A tab; at its end, it is checked, and a picture of it is kept in the folder."""
    context: BrowserContext = browser.new_context(
        **{"viewport": {"width": 1280, "height": 1400}, **options}
    )
    context.set_default_timeout(20_000)
    page = context.new_page()
    tab = Tab(server, page)
    page.on("request", lambda request: tab.asked.append(request.url))
    page.on("pageerror", lambda error: tab.broken.append(str(error)))
    page.on(
        "console",
        lambda said: (
            # The browser's own note of an answer such as 401, which the page shows.
            tab.broken.append(said.text)
            if said.type == "error" and "Failed to load resource" not in said.text
            else None
        ),
    )
    try:
        yield tab
    finally:
        page.screenshot(path=folder / "page.png", full_page=True)
        context.close()
    tab.check_clean()
