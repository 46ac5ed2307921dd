"""What the documentation promises is there, and what is there is in the documentation."""

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

DOCS = ROOT / "docs"
API = (DOCS / "api.md").read_text()
OPERATING = (DOCS / "operating.md").read_text()
README = (ROOT / "README.md").read_text()


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


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS.glob("*.md")], ids=lambda p: p.stem)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z][a-z-]+)", README)):
        if target not in ("runs",):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
