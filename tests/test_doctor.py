"""What the doctor says of a machine."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from pfms.local.doctor import (
    check_disk,
    check_memory,
    check_port,
    check_shared_memory,
    check_temporary_folder,
    check_user,
    check_workspace,
    judge_shared_memory,
)
from pfms.local.doctor_plugin import (
    TorchFacts,
    ask_torch,
    check_plugin,
    check_weights_child,
    judge_devices,
)
from pfms.plugin.command import PluginCommand, resolve_command
from pfms.plugin.types import HostFacts
from pfms.volumes.memory import RunMemory
from tests.command import pfms
from tests.conftest import PLUGINS, Server
from tests.small_server import small_server

CPU_TORCH = TorchFacts("2.13.0+cpu", None, {"cpu": ""})
CUDA_TORCH = TorchFacts("2.13.0", "13.0", {"cpu": "", "cuda:0": "", "cuda:1": ""})
BLIND_TORCH = TorchFacts("2.13.0", "13.0", {"cpu": ""})
SICK_TORCH = TorchFacts("2.13.0", "13.0", {"cpu": "", "cuda:0": "no kernel image is available"})


def examined(tmp_path: Path, code: int = 0, **settings: str) -> dict[str, dict[str, Any]]:
    """What `pfms doctor --json` says, by name."""
    defaults = {"workspace": str(tmp_path / "workspace"), "min_free_bytes": "0", "port": "0"}
    done = pfms("doctor", "--json", cwd=tmp_path, code=code, **{**defaults, **settings})
    told = json.loads(done.stdout)
    assert told["ok"] == (code == 0)
    return {check["name"]: check for check in told["checks"]}


@pytest.mark.parametrize(
    ("chosen", "driver", "torch", "status", "word"),
    [
        (("cpu",), (0, 0), CPU_TORCH, "ok", "a CPU build"),
        (("cpu",), (0, 0), BLIND_TORCH, "ok", "built for CUDA 13.0"),
        (("cuda:0", "cuda:1"), (2, 13), CUDA_TORCH, "ok", "cuda:0, cuda:1"),
        (("cpu",), (1, 13), CPU_TORCH, "warn", "TORCH_INDEX"),
        (("cpu",), (2, 12), BLIND_TORCH, "warn", "CUDA 12.x"),
        (("cpu",), (1, 13), CUDA_TORCH, "warn", "PFMS_DEVICES"),
        (("cuda:0",), (1, 13), BLIND_TORCH, "fail", "does not see it"),
        (("cuda:0",), (1, 13), SICK_TORCH, "fail", "no kernel image"),
        (("cpu",), (0, 0), TorchFacts(error="No module named 'torch'"), "fail", "No module"),
    ],
)
def test_devices_are_judged_by_driver_and_torch_together(
    chosen: tuple[str, ...], driver: tuple[int, int], torch: TorchFacts, status: str, word: str
) -> None:
    check = judge_devices(chosen, driver, torch)
    assert check.status == status
    assert word in f"{check.detail} {check.remedy}"
    assert bool(check.remedy) == (status != "ok")


@pytest.mark.parametrize(
    ("total", "free", "status"),
    [
        (64 << 20, 64 << 20, "fail"),
        (256 << 20, 256 << 20, "warn"),
        (2 << 30, 2 << 30, "ok"),
        (2 << 30, 900 << 20, "warn"),
        (2 << 30, 10 << 20, "fail"),
    ],
)
def test_shared_memory_is_judged_by_what_is_free(total: int, free: int, status: str) -> None:
    check = judge_shared_memory(total, free)
    assert check.status == status
    assert ("--shm-size" in check.remedy) == (status != "ok")


def test_memory_is_judged_by_what_a_clinical_ct_needs() -> None:
    assert check_memory(RunMemory()).status == "ok"
    assert check_memory(RunMemory(together=2**40, alone=2**40)).status == "ok"
    little = check_memory(RunMemory(alone=2**30, setting="PFMS_MEMORY_LIMIT"))
    assert little.status == "warn"
    assert "PFMS_MEMORY_LIMIT" in little.remedy


def test_a_machine_without_shared_memory_is_warned_of(tmp_path: Path) -> None:
    assert check_shared_memory(tmp_path / "none").status == "warn"


def test_a_temporary_folder_that_cannot_hold_sockets_gets_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_temporary_folder(Path("/tmp")).status == "ok"
    assert "too long" in check_temporary_folder(Path("/tmp", "x" * 80)).detail
    monkeypatch.chdir(tmp_path)
    check = check_temporary_folder(tmp_path)
    assert check.status == "warn"
    assert "TMPDIR" in check.detail
    assert "TMPDIR" in check.remedy


def test_a_user_without_name_or_home_is_warned_of() -> None:
    check = check_user(HostFacts(has_user=False, spare_home="/spare"))
    assert check.status == "warn"
    assert "passwd" in check.detail
    assert "HOME" in check.detail
    assert check_user(HostFacts()).status == "ok"


def test_a_disk_that_is_too_full_fails(tmp_path: Path) -> None:
    assert check_disk(tmp_path / "not" / "yet", 0).status == "ok"
    check = check_disk(tmp_path, 1 << 60)
    assert check.status == "fail"
    assert "PFMS_MIN_FREE_BYTES" in check.remedy


def test_a_workspace_is_shown_with_the_process_that_holds_it(
    server: Server, tmp_path: Path
) -> None:
    held = check_workspace(server.workspace)
    assert held.status == "ok"
    assert f"process {server.process.pid}" in held.detail
    assert "will be made" in check_workspace(tmp_path / "new").detail
    assert "is writable" in check_workspace(tmp_path).detail
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_workspace_that_cannot_be_written_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert check_workspace(tmp_path / "new").status == "fail"


def test_a_port_is_free_or_a_pfms_has_it_or_another(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    ours = check_port("127.0.0.1", port)
    assert ours.status == "warn"
    assert f"port {port}" in ours.detail
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    assert check_port("127.0.0.1", free).status == "ok"
    assert check_port("127.0.0.1", 0).status == "ok"
    assert check_port("203.0.113.1", 2024).status == "fail", "an address of nobody here"


def test_a_port_that_something_else_has_fails() -> None:
    with small_server(lambda request: request.say(b'{"name": "another"}')) as url:
        check = check_port("127.0.0.1", int(url.rpartition(":")[2]))
    assert check.status == "fail"
    assert "taken" in check.detail


def test_a_plugin_that_does_not_start_fails_with_its_last_word() -> None:
    check = check_plugin(resolve_command(str(PLUGINS / "exit3.py")), {})
    assert check.status == "fail"
    assert "no spleen today" in check.detail
    assert "make install" in check.remedy


def test_a_plugin_that_starts_is_ok() -> None:
    assert check_plugin(resolve_command(str(PLUGINS / "ok.py")), {}).status == "ok"


def test_the_plugin_is_checked_in_the_environment_of_a_run(tmp_path: Path) -> None:
    script = tmp_path / "asks.py"
    script.write_text(
        "import os, sys; sys.exit(os.environ['GIVEN'] if 'PFMS_X' in os.environ else 0)"
    )
    os.environ["PFMS_X"] = "a setting, not for the plugin"
    try:
        assert check_plugin(resolve_command(str(script)), {"GIVEN": "1"}).status == "ok"
    finally:
        del os.environ["PFMS_X"]


def test_a_python_without_the_plugin_fails(tmp_path: Path) -> None:
    """An interpreter of an environment that has nothing."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    command = PluginCommand((str(bare),), str(bare), "foreign")
    assert check_weights_child(command).status == "fail"
    assert "torch" in ask_torch(command, {}).error


def test_a_wrong_setting_is_a_line_of_the_report(tmp_path: Path) -> None:
    checks = examined(tmp_path, 1, port="many")
    assert list(checks) == ["settings"]
    assert "PFMS_PORT" in checks["settings"]["detail"]


def test_a_missing_plugin_is_reported_and_the_rest_is_checked(tmp_path: Path) -> None:
    checks = examined(tmp_path, 1, plugin_command="no-such-plugin")
    assert checks["plugin"]["status"] == "fail"
    assert "no-such-plugin" in checks["plugin"]["detail"]
    assert {name for name, check in checks.items() if check["status"] == "fail"} == {"plugin"}
    assert {"python", "workspace", "disk", "port", "shared memory"} < set(checks)
    assert not (tmp_path / "workspace").exists(), "it only looks"


def test_without_json_it_is_a_line_each(tmp_path: Path) -> None:
    settings = {"plugin_command": "no-such-plugin", "port": "0", "min_free_bytes": "0"}
    lines = pfms("doctor", cwd=tmp_path, code=1, **settings).stdout.splitlines()
    assert [line.split()[0] for line in lines].count("fail") == 1
    assert all(line.split()[0] in ("ok", "warn", "fail") for line in lines)


@pytest.mark.real
def test_the_real_plugin_is_started_and_torch_queried(tmp_path: Path) -> None:
    checks = examined(tmp_path, devices="cpu")
    assert "version 1.2.44" in checks["plugin"]["detail"]
    assert "148 tensors" in checks["model check"]["detail"]
    assert "torch 2." in checks["devices"]["detail"]
    assert all(check["status"] != "fail" for check in checks.values())
