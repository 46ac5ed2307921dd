"""Finding the plugin's command, with real files."""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from pfms.errors import StartError
from pfms.plugin.command import PluginCommand, host_facts, plugin_version, resolve_command, versions


def program(path: Path, first_line: str, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{first_line}\n")
    path.chmod(mode)
    return path


def test_the_plugin_in_our_own_environment_is_found_even_if_not_on_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    command = resolve_command("spleenseg")
    assert command.argv == (str(Path(sys.executable).parent / "spleenseg"),)
    assert Path(command.interpreter).parent == Path(sys.executable).parent
    assert (command.kind, command.entry_point) == ("entry-point", "spleenseg.spleenseg:main")
    assert plugin_version(command) == versions()["spleenseg"]


def test_it_can_be_given_by_path_instead_of_name() -> None:
    path = str(Path(sys.executable).parent / "spleenseg")
    assert resolve_command(path) == resolve_command("spleenseg")


def test_an_environment_is_our_own_even_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "venv"
    link.symlink_to(Path(sys.executable).parent.parent)
    monkeypatch.setattr(sys, "executable", str(link / "bin" / "python"))
    command = resolve_command("spleenseg")
    assert command.argv == (str(link / "bin" / "spleenseg"),)
    assert command.kind == "entry-point"


def test_a_script_is_run_by_our_own_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake plugin.py").touch()
    monkeypatch.chdir(tmp_path)
    command = resolve_command("fake plugin.py")
    assert command.argv == (sys.executable, str(tmp_path / "fake plugin.py"))
    assert (command.interpreter, command.kind) == (sys.executable, "script")
    assert plugin_version(command) is None


@pytest.mark.parametrize(
    ("first_line", "interpreter"),
    [
        ("#!/opt/other env/bin/python3.12", None),
        ("#!/opt/other/bin/python3.12", "/opt/other/bin/python3.12"),
        ("#! /opt/other/bin/python -E", "/opt/other/bin/python"),
        ("#!/bin/sh\n'''exec' \"/opt/a b/bin/python\" \"$0\" \"$@\"\n' '''", "/opt/a b/bin/python"),
        ("#!/bin/sh\n'''exec' /opt/long/python3 \"$0\" \"$@\"\n' '''", "/opt/long/python3"),
        ("#!/usr/bin/env python3", shutil.which("python3")),
        ("#!/bin/sh\necho", None),
        ("\x7fELF", None),
    ],
)
def test_the_python_of_a_foreign_command_is_read_from_its_first_line(
    tmp_path: Path, first_line: str, interpreter: str | None
) -> None:
    path = program(tmp_path / "segment", first_line)
    command = resolve_command(str(path))
    assert command == PluginCommand((str(path),), interpreter or sys.executable, "foreign")


def test_a_command_on_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "segment", "#!/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert resolve_command("segment").argv == (str(tmp_path / "segment"),)


def test_a_console_script_whose_package_is_missing_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "ghost-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ghost\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nghost = ghost.main:main\n")
    monkeypatch.syspath_prepend(info.parent)
    path = program(tmp_path / "bin" / "ghost", f"#!{sys.executable}")
    with pytest.raises(StartError, match="not its Python package 'ghost") as refused:
        resolve_command(str(path))
    assert "Install" in refused.value.remedy

    (info.parent / "ghost").mkdir()
    (info.parent / "ghost" / "__init__.py").write_text("raise SystemExit('it was imported')")
    command = resolve_command(str(path))
    assert (command.kind, command.entry_point) == ("entry-point", "ghost.main:main")
    assert plugin_version(command) == "1.0"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("no-such-command", "'no-such-command' was found neither"),
        ("nowhere/spleenseg", "There is no plugin executable 'nowhere/spleenseg'"),
        ("nowhere.py", "There is no plugin script 'nowhere.py'"),
        ("./not-executable", "'./not-executable' cannot be executed"),
        ("./folder", "There is no plugin executable './folder'"),
    ],
)
def test_an_unusable_command_is_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    program(tmp_path / "not-executable", "#!/bin/sh", mode=stat.S_IRUSR)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StartError) as refused:
        resolve_command(setting)
    assert says in refused.value.detail
    assert "PFMS_PLUGIN_COMMAND" in refused.value.remedy


def test_the_versions_include_everything_that_affects_voxels() -> None:
    found = versions()
    assert {"python", "pfms", "spleenseg", "torch", "monai", "numpy", "nibabel"} <= found.keys()
    assert found["cpu"]
    assert found["machine"]


def test_a_home_that_cannot_be_written_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert host_facts(tmp_path / "spare").spare_home is None
    assert not (tmp_path / "spare").exists()
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    assert host_facts(tmp_path / "spare").spare_home == str(tmp_path / "spare")
    assert (tmp_path / "spare").is_dir()
