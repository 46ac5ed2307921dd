"""What the documentation promises exists, and what exists is documented."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from pfms import errors
from pfms.api.problems import STATUS
from pfms.cli import app
from pfms.settings import Settings, load_settings
from tests.conftest import ROOT, Server
from tests.examples import BLOCK, MARK

DOCS = ROOT / "docs"
API = (DOCS / "api.md").read_text()
OPERATING = (DOCS / "operating.md").read_text()
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (DOCS / "architecture.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_explained(name: str) -> None:
    setting = f"PFMS_{name.upper()}"
    config = (ROOT / "config.env").read_text()
    assert re.search(rf"^# .+\n{setting}=", config, re.MULTILINE), "with a line that explains it"
    assert f"`{setting}`" in OPERATING


def test_config_env_holds_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PFMS_{name.upper()}", raising=False)
    empty = tmp_path / "empty.env"
    empty.touch()
    assert load_settings(ROOT / "config.env") == load_settings(empty)


def test_every_call_is_in_the_documentation(server: Server) -> None:
    document = server.http.get(f"{server.url}/openapi.json").json()
    for path, calls in document["paths"].items():
        short = path.removeprefix("/api/v1")
        for method in calls:
            assert re.search(rf"`?{method.upper()} {re.escape(short)}[`?]", API), (method, path)


@pytest.mark.parametrize(
    "kind", [kind for kind in STATUS if kind is not errors.PfmsError], ids=lambda kind: kind.code
)
def test_every_error_is_in_the_documentation_with_its_status(kind: type[errors.PfmsError]) -> None:
    table = API.partition("## Errors")[2].splitlines()
    row = next(line for line in table if f"`{kind.code}`" in line)
    assert f"| {STATUS[kind]} |" in row


def test_every_command_is_in_the_documentation() -> None:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        said = re.findall(rf"`pfms {name}( [a-z|]+)?`", OPERATING.partition("## Commands")[2])
        assert said, name
        subcommands = set(getattr(command, "commands", {}))
        assert subcommands == set(said[0].strip().split("|")) - {""}


@pytest.mark.parametrize("command", [[], ["serve"], ["infer"], ["jobs", "list"], ["doctor"]])
def test_help_answers(command: list[str]) -> None:
    line = [sys.executable, "-m", "pfms", *command, "--help"]
    assert "Usage" in subprocess.run(line, capture_output=True, text=True, check=True).stdout


# Their headings come from the code when the manual is built; tests/test_manual.py checks these.
MADE = ("errors.md", "reference.md")
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("[ew]*/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor and file.name in MADE:
            continue
        headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [each.lower().replace(" ", "-") for each in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_says_whether_it_runs(page: Path) -> None:
    """`<!-- run -->` in the line before it (tests/test_examples.py), or `<!-- not run: WHY -->`."""
    for block in BLOCK.finditer(page.read_text()):
        assert MARK.fullmatch(block["before"]), block["code"]


def test_every_make_target_in_the_documentation_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pattern = r"(?:^|`)make ((?:[a-z][a-z-]+ ?)+)"
    named = re.findall(pattern, README + CONTRIBUTING, re.MULTILINE)
    targets = {target for line in named for target in line.split()}
    assert {"install", "demo", "test", "test-all", "lint", "bench"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_contributing_names_every_package_and_no_other() -> None:
    packages = {f"pfms/{init.parent.name}/" for init in (ROOT / "pfms").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(pfms/[a-z]+/)`", CONTRIBUTING, re.MULTILINE)) == packages


@pytest.mark.parametrize(
    "page", [CONTRIBUTING, ARCHITECTURE, SECURITY], ids=["contributing", "architecture", "security"]
)
def test_every_file_that_a_guide_names_exists(page: str) -> None:
    for name in re.findall(r"`([a-z_/]+/[a-z_]+\.(?:py|md)|tests/plugins/)`", page):
        assert (ROOT / name).exists() or (ROOT / "pfms" / name).exists(), name


def test_an_upload_is_followed_to_its_result_through_15_modules_at_most() -> None:
    steps = ARCHITECTURE.partition("## The way of a volume")[2].partition("```mermaid")[0]
    assert len(set(re.findall(r"`([a-z]+/[a-z_]+\.py)`", steps))) <= 15
