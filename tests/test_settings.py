"""The settings: config.env, the environment, the command line, and values that are refused."""

import itertools
import os
import re
from pathlib import Path

import pytest

from pfms.errors import StartError
from pfms.settings import Settings, load_settings
from tests.conftest import ROOT

CONFIG = ROOT / "config.env"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No config.env of a working directory, and no environment."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("PFMS_"):
            monkeypatch.delenv(name)


def test_config_env_holds_every_setting_with_its_default_and_a_line_that_explains_it() -> None:
    lines = CONFIG.read_text().splitlines()
    names = []
    for before, line in itertools.pairwise(lines):
        if line.startswith("PFMS_"):
            assert before.startswith("# "), line
            names.append(line.partition("=")[0].removeprefix("PFMS_").lower())

    assert names == list(Settings.model_fields)
    assert load_settings(CONFIG) == load_settings()


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = load_settings()

    assert (settings.host, settings.port, settings.workspace) == (
        "127.0.0.1",
        2024,
        Path("workspace"),
    )
    assert (settings.max_upload_bytes, settings.max_volume_bytes) == (2 << 30, 8 << 30)
    assert settings.min_free_bytes == 5 << 30
    assert settings.cors_origins == ()


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.env").write_text(
        "PFMS_PORT=1\nPFMS_QUEUE_LIMIT=1\nPFMS_JOBS_PER_DEVICE=4\n"
    )
    monkeypatch.setenv("PFMS_PORT", "2")
    monkeypatch.setenv("PFMS_QUEUE_LIMIT", "2")

    settings = load_settings(port=3, host=None)

    assert (settings.port, settings.queue_limit, settings.jobs_per_device) == (3, 2, 4)
    assert settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("500MB", 500_000_000), ("1024", 1024), ("1 KiB", 1024)]
)
def test_sizes_are_read_with_their_units(
    monkeypatch: pytest.MonkeyPatch, text: str, size: int
) -> None:
    monkeypatch.setenv("PFMS_MAX_UPLOAD_BYTES", text)

    assert load_settings().max_upload_bytes == size


def test_origins_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFMS_CORS_ORIGINS", " https://a.test ,https://b.test,")

    assert load_settings().cors_origins == ("https://a.test", "https://b.test")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOST", ""),
        ("WORKSPACE", ""),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "2024.5"),
        ("EXECUTOR", "magic"),
        ("PLUGIN_COMMAND", ""),
        ("DEVICES", ""),
        ("JOBS_PER_DEVICE", "0"),
        ("QUEUE_LIMIT", "0"),
        ("JOB_TIMEOUT_SECONDS", "0"),
        ("JOB_TIMEOUT_SECONDS", "nan"),
        ("JOB_TIMEOUT_SECONDS", "inf"),
        ("GRACE_SECONDS", "-1"),
        ("GRACE_SECONDS", "soon"),
        ("GRACE_SECONDS", "inf"),
        ("DRAIN_SECONDS", "nan"),
        ("MAX_ATTEMPTS", "0"),
        ("MAX_UPLOAD_BYTES", "2 GB of data"),
        ("MAX_UPLOAD_BYTES", "2,5GiB"),
        ("MAX_UPLOAD_BYTES", "0"),
        ("MAX_GRID_VOXELS", "5e8x"),
        ("MIN_FREE_BYTES", "-1"),
        ("KEEP_VOLUMES_HOURS", "inf"),
        ("KEEP_VOLUMES_HOURS", "1e300"),
        ("KEEP_RECORDS_DAYS", "1e9"),
        ("KEEP_RECORDS_DAYS", "-1"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_wrong_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"PFMS_{name}", value)

    with pytest.raises(StartError) as caught:
        load_settings()

    assert re.match(rf"PFMS_{name}='{re.escape(value)}' ", caught.value.detail)
    assert "\n" not in caught.value.line


def test_an_unknown_name_in_the_file_is_refused_as_it_is_written(
    tmp_path: Path,
) -> None:
    for name in ("PFMS_PROT", "PROT"):
        (tmp_path / "config.env").write_text(f"{name}=1\n")
        with pytest.raises(StartError, match=rf" {name}, which is not a setting"):
            load_settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1
