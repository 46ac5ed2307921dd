"""The nodes of Ray under systemd: checked by its own tools, and started by a real systemd."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import booted
from tests.conftest import ROOT, eventually
from tests.test_proxy import free_port
from tests.test_systemd import MOST_EXPOSURE, analyze, needs_a_boot, needs_systemd

RAY = ROOT / "deploy" / "ray"
UNIT = RAY / "pfms-ray@.service"
ROLES = ("head", "worker")
LOCALHOST = "127.0.0.1"

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)


def environment_of(role: str, port: int) -> str:
    """The file of the role, with all nodes on this machine, and another port of the head's."""
    text = (RAY / f"{role}.env").read_text()
    for shipped, here in (("10.20.0.1", LOCALHOST), ("10.20.0.2", LOCALHOST), ("6379", str(port))):
        text = text.replace(shipped, here)
    return text


@needs_systemd
@pytest.mark.parametrize("role", ROLES)
def test_systemd_finds_no_fault_in_the_unit(role: str, tmp_path: Path) -> None:
    copy = tmp_path / f"pfms-ray@{role}.service"  # whose program is there
    copy.write_text(UNIT.read_text().replace("/opt/pfms/bin/ray", "/bin/true"))
    checked = analyze("verify", copy)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    judged = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", copy)
    assert judged.returncode == 0, judged.stdout + judged.stderr


# Ray takes a while to start, so CI leaves this out.
@pytest.mark.every
@needs_ray
@needs_a_boot
def test_head_and_worker_find_each_other_under_the_unit_and_ask_for_the_token(
    tmp_path: Path,
) -> None:
    port = free_port()
    (tmp_path / "token").write_text("the-token-of-this-test-which-nobody-else-has\n")
    files = {f"/etc/pfms/ray-{role}.env": environment_of(role, port) for role in ROLES} | {
        "/etc/pfms/ray.token": (tmp_path / "token").read_text(),
        f"{booted.UNITS}/pfms.sysusers": (ROOT / "deploy/systemd/pfms.sysusers").read_text(),
        f"{booted.UNITS}/{UNIT.name}.d/python.conf": (
            "[Service]\nEnvironmentFile=/etc/pfms/environment\n"
        ),
        f"{booted.UNITS}/test.target": (
            "[Unit]\nWants=" + " ".join(f"pfms-ray@{role}.service" for role in ROLES) + "\n"
        ),
    }
    with booted.booted(tmp_path, UNIT, files) as up:
        log = up.seen(booted.LOG)
        known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
        eventually(lambda: "/1000.0 pfms" in status(port, known).stdout, seconds=60)

        assert "Active" in (said := status(port, known).stdout), said
        for role in ROLES:
            assert up.shows(f"pfms-ray@{role}", "ActiveState") == "active", log.read_text()
        for wrong in ({"RAY_AUTH_MODE": "disabled"}, {**known, "RAY_AUTH_TOKEN": "another" * 6}):
            refused = status(port, wrong)
            assert refused.returncode != 0, refused.stdout


def status(port: int, known: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What `ray status` says to one who knows so much."""
    asked = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={LOCALHOST}:{port}"]
    return subprocess.run(asked, env={**os.environ, **known}, capture_output=True, text=True)
