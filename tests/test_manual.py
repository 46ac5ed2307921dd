"""The manual: built by its script, shown by a server, whole, and without any other host."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pytest

from pfms.api.problems import STATUS
from tests.browser import a_browser, a_tab
from tests.conftest import ROOT, Server, eventually, start
from tools.manual import reference
from tools.manual.sources import DIAGRAM, picture_of
from tools.pictures.terminal import Shell, Shown, svg

# pfms from a folder of its own, which a test may change.
PROGRAM = "import sys; sys.path.insert(0, {!r}); from pfms.cli import main; main()"


class Page(HTMLParser):
    """What a page of the manual has: its anchors, links, and what it loads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = dict(attrs)
        if has.get("id"):
            self.anchors.add(str(has["id"]))
        if tag == "a" and has.get("href"):
            self.links.append(str(has["href"]))
        if tag == "link" or (tag in ("script", "img") and has.get("src")):
            self.loaded.append(str(has.get("src") or has["href"]))
        if tag == "script" and not has.get("src") and has.get("type") != "application/json":
            self.inline.append(str(self.get_starttag_text()))
        self.inline += [name for name in has if name.startswith("on")]


@dataclass
class Manual:
    """A server with the manual, and all its pages by their URLs."""

    server: Server
    before: str  # what the server showed before it was built
    pages: dict[str, Page] = field(default_factory=dict)

    def read(self) -> None:
        todo = [f"{self.server.url}/manual/index.html"]
        while todo:
            url = todo.pop()
            answer = self.server.http.get(url)
            assert answer.status_code == 200, url
            page = self.pages[url] = Page(answer.text)
            found = {urldefrag(urljoin(url, link)).url for link in page.links}
            html = {each for each in found if each.endswith(".html")}
            todo += html - self.pages.keys() - set(todo)


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manual]:
    folder = tmp_path_factory.mktemp("manual")
    ignored = shutil.ignore_patterns("__pycache__", "manual")
    shutil.copytree(ROOT / "pfms", folder / "pfms", ignore=ignored)
    server = start(folder / "workspace", program=("-c", PROGRAM.format(str(folder))))
    shown = server.http.get(f"{server.url}/manual/index.html")
    assert shown.status_code == 404
    build = [sys.executable, "-m", "tools.manual", "--out", str(folder / "pfms" / "manual")]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    made = Manual(server, shown.text)
    made.read()
    yield made
    server.stop()


def test_before_it_is_built_the_server_says_how(manual: Manual) -> None:
    assert "<code>make docs</code>" in manual.before


def test_it_is_found_with_and_without_a_slash(manual: Manual) -> None:
    for path in ("/manual", "/manual/"):
        answer = manual.server.http.get(manual.server.url + path)
        assert (answer.status_code, answer.headers["location"]) == (307, "/manual/index.html")


def test_every_link_leads_to_a_page_and_a_place_on_it(manual: Manual) -> None:
    assert len(manual.pages) > 10
    for url, page in manual.pages.items():
        for link in page.links:
            target, anchor = urldefrag(urljoin(url, link))
            if not target.startswith(manual.server.url):
                continue
            if target in manual.pages:
                assert not anchor or anchor in manual.pages[target].anchors, (url, link)
            else:
                assert manual.server.http.head(target).status_code == 200, (url, link)


def test_every_page_of_the_docs_is_in_it(manual: Manual) -> None:
    names = {url.rpartition("/")[2].removesuffix(".html") for url in manual.pages}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= names
    assert {"index", "contributing", "changelog", "security", "examples"} <= names


def test_the_answers_that_it_shows_have_the_fields_of_this_version() -> None:
    answers = json.loads(reference.ANSWERS.read_text())
    schemas = reference.document()["components"]["schemas"]
    for _, _, call in reference.operations():
        for status in ("200", "202"):
            bodies = call["responses"].get(status, {}).get("content", {})
            name = bodies.get("application/json", {}).get("schema", {}).get("$ref", "")
            if name and call["operationId"] != "infer":  # its example waits for the file
                fields = schemas[name.rpartition("/")[2]]["properties"].keys()
                assert answers[call["operationId"]].keys() == fields, "run `make pictures`"


def test_it_loads_nothing_from_another_host_and_runs_no_script_of_a_page(manual: Manual) -> None:
    for url, page in manual.pages.items():
        assert page.inline == [], url
        for each in page.loaded:
            target = urljoin(url, each)
            assert target.startswith(manual.server.url), (url, each)
            assert manual.server.http.head(target).status_code == 200, (url, each)
        policy = manual.server.http.head(url).headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; worker-src 'self'" in policy
        assert "//" not in policy


def test_every_error_and_call_has_its_section(manual: Manual) -> None:
    root = f"{manual.server.url}/manual"
    assert {kind.code for kind in STATUS} <= manual.pages[f"{root}/errors.html"].anchors
    document = manual.server.http.get(f"{manual.server.url}/openapi.json").json()
    names = {call["operationId"] for calls in document["paths"].values() for call in calls.values()}
    assert names <= manual.pages[f"{root}/reference.html"].anchors


def test_its_search_has_what_it_loads(manual: Manual) -> None:
    root = f"{manual.server.url}/manual"
    html = manual.server.http.get(f"{root}/index.html").text
    [config] = re.findall(r'id="__config" type="application/json">([^<]+)<', html)
    assert manual.server.http.head(f"{root}/{json.loads(config)['search']}").status_code == 200
    assert "PFMS_MIN_FREE_BYTES" in manual.server.http.get(f"{root}/search.json").text


def test_it_is_searched_in_a_browser_that_holds_it_to_its_policy(
    manual: Manual, tmp_path: Path
) -> None:
    with a_browser() as browser, a_tab(browser, manual.server, tmp_path) as tab:
        tab.page.goto(f"{manual.server.url}/manual", wait_until="networkidle")
        start = tab.page.url
        tab.page.keyboard.press("Control+k")
        tab.page.keyboard.type("no-shared-memory")

        def opens_what_is_found() -> bool:  # a test cannot see the list itself
            tab.page.keyboard.press("Enter")
            return tab.page.url != start

        eventually(opens_what_is_found)


def test_the_page_that_a_problem_names_leads_to_the_manual(manual: Manual) -> None:
    problem = manual.server.http.get("/nothing").json()
    page = Page(manual.server.http.get(manual.server.url + problem["type"]).text)
    links = [link for link in page.links if link.startswith("/manual/errors.html#")]
    assert len(links) == len(STATUS)
    assert "/manual/errors.html#not-found" in links


def test_every_picture_is_shown_and_needs_no_other_host(manual: Manual) -> None:
    shown = {urljoin(url, each) for url, page in manual.pages.items() for each in page.loaded}
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert f"{manual.server.url}/manual/pictures/{picture.name}" in shown
        if picture.suffix == ".png":
            continue
        found = re.findall(r"url\((?!#)|(?:href|src)=\"(?!#)", picture.read_text())
        assert found == [], picture.name
        assert str(ROOT) not in picture.read_text()


def test_every_diagram_is_a_picture() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for diagram in DIAGRAM.finditer(page.read_text()):
            assert (ROOT / "docs" / picture_of(diagram[1])).exists(), "run `make pictures`"


def test_a_picture_of_the_terminal_is_what_a_program_wrote(tmp_path: Path) -> None:
    program = "printf 'one\\r\\033[Ktwo \\033[31mred\\033[0m at %s' $PWD"
    shell = Shell(tmp_path, dict(os.environ), {str(tmp_path): "~"})
    shown = shell.run(shlex.join(["sh", "-c", program])).last()
    assert shown[1].plain == "two red at ~"
    assert ">red<" in svg(shown)


def test_a_picture_may_be_of_an_earlier_moment() -> None:
    shown = Shown("wait", ["10%", "\r20%", "\r\033[Kdone"])
    assert [row.plain for row in shown.last_with("%")] == ["$ wait", "20%"]
    assert [row.plain for row in shown.last()] == ["$ wait", "done"]


def test_only_its_files_are_shown(manual: Manual) -> None:
    for path in ("nothing", "assets", "../cli.py", "..%2fcli.py", "%2e%2e/cli.py", "%00"):
        shown = manual.server.http.get(f"{manual.server.url}/manual/{path}")
        assert shown.status_code == 404, path
        assert shown.json()["code"] == "not-found"


def test_it_is_revalidated_by_its_etag(manual: Manual) -> None:
    url = f"{manual.server.url}/manual/errors.html"
    etag = manual.server.http.get(url).headers["etag"]
    again = manual.server.http.get(url, headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-security-policy" in again.headers


def test_a_script_in_a_page_becomes_a_file(manual: Manual) -> None:
    html = manual.server.http.get(f"{manual.server.url}/manual/index.html").text
    assert re.search(r'<script src="assets/javascripts/[0-9a-f]{12}\.js">', html)


def test_a_dead_link_stops_the_build(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".git", ".venv", "workspace", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, clone, ignore=ignored)
    (clone / "workspace").mkdir()
    shutil.copy(ROOT / "workspace" / "README.md", clone / "workspace")
    with (clone / "docs" / "api.md").open("a") as page:
        page.write("\n[nowhere](operating.md#nowhere)\n")
    build = [sys.executable, "-m", "tools.manual", "--out", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 1
    assert "operating.md#nowhere" in re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
    assert not (tmp_path / "site").exists()
