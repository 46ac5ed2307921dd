"""The nodes of Ray under systemd: checked by its own tools, and started by a real systemd."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests import booted
from tests.conftest import ROOT, Server, eventually, seed_model
from tests.test_proxy import answers, free_port
from tests.test_systemd import MOST_EXPOSURE, STATE, analyze, needs_a_boot, needs_systemd
from tests.test_systemd import UNIT as PFMS

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


# Three units, two of them of Ray, take a while to start, so CI leaves this out.
@pytest.mark.every
@pytest.mark.timeout(300)
@needs_ray
@needs_a_boot
def test_a_job_runs_on_a_worker_and_nobody_without_the_token_reaches_it(tmp_path: Path) -> None:
    token = "the-token-of-this-test-which-nobody-else-has"
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    ray_port, port = free_port(), free_port()
    config = {
        "port": port,
        "executor": "ray",
        "ray_address": f"{LOCALHOST}:{ray_port}",
        "plugin_command": f"{booted.SOURCE}/tests/plugins/ok.py",
        "min_free_bytes": 0,
    }
    seed_model(tmp_path / "tree" / STATE[1:])
    units = ("pfms-ray@head.service", "pfms-ray@worker.service", PFMS.name)
    files = {f"/etc/pfms/ray-{role}.env": environment_of(role, ray_port) for role in ROLES} | {
        "/etc/pfms/ray.token": f"{token}\n",
        "/etc/pfms/config.env": "".join(f"PFMS_{k.upper()}={v}\n" for k, v in config.items()),
        f"{booted.UNITS}/{PFMS.name}": PFMS.read_text(),
        f"{booted.UNITS}/{PFMS.name}.d/ray.conf": drop_in_of_the_documentation(),
        f"{booted.UNITS}/{PFMS.name}.d/log.conf": f"[Service]\nStandardError=append:{booted.LOG}\n",
        f"{booted.UNITS}/pfms.sysusers": (PFMS.parent / "pfms.sysusers").read_text(),
        f"{booted.UNITS}/{UNIT.name}.d/python.conf": (
            "[Service]\nEnvironmentFile=/etc/pfms/environment\n"
        ),
        f"{booted.UNITS}/test.target": f"[Unit]\nWants={' '.join(units)}\n",
    }
    with booted.booted(tmp_path, UNIT, files) as up:
        eventually(lambda: "/1000.0 pfms" in status(ray_port, known).stdout, seconds=60)
        log, ready = up.seen(booted.LOG), f"http://{LOCALHOST}:{port}/health/ready"
        eventually(lambda: answers(port) and httpx.get(ready).status_code == 200, seconds=60)
        server = Server(up.seen(STATE), up.process, f"http://{LOCALHOST}:{port}", log)
        with server.http:
            job = server.ended(server.submit())
        assert job["state"] == "succeeded", log.read_text()
        assert job["device"].endswith("/cpu")

        for unit in units:
            assert up.shows(unit, "ActiveState") == "active", log.read_text()
        for wrong in ({"RAY_AUTH_MODE": "disabled"}, {**known, "RAY_AUTH_TOKEN": "another" * 6}):
            refused = status(ray_port, wrong)
            assert refused.returncode != 0, refused.stdout


def drop_in_of_the_documentation() -> str:
    """What docs/scale.md has in a drop-in of pfms.service."""
    page = (ROOT / "docs" / "scale.md").read_text()
    [shown] = re.findall(r"```ini\n(.+?)```", page, re.DOTALL)
    return str(shown)


def status(port: int, known: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What `ray status` says to one who knows so much."""
    asked = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={LOCALHOST}:{port}"]
    return subprocess.run(asked, env={**os.environ, **known}, capture_output=True, text=True)
