"""The unit of systemd: checked by systemd's own tools, and started by a real systemd."""

import gzip
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from examples.phantoms import dice, make_phantom
from pfms.settings import Settings
from tests import booted, tokens
from tests.booted import LOG, SOURCE, Booted
from tests.conftest import ROOT, Server, eventually, seed_model
from tests.scrape import value
from tests.test_proxy import answers, free_port
from tests.test_server import folder_of, log_of

UNIT = ROOT / "deploy" / "systemd" / "pfms.service"
MOST_EXPOSURE = 20  # of 100, as `systemd-analyze security` counts it
STATE = "/var/lib/pfms"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)
needs_a_boot = pytest.mark.skipif(
    not booted.can_boot(), reason="to start systemd takes root, namespaces and systemd"
)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True)


def in_unit(name: str) -> str:
    found: list[str] = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return found[-1]


@needs_systemd
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name  # whose program is there
    copy.write_text(UNIT.read_text().replace("/opt/pfms/bin/pfms", "/bin/true"))
    checked = analyze("verify", copy)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@needs_systemd
def test_the_unit_is_little_exposed() -> None:
    judged = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", UNIT)
    assert judged.returncode == 0, judged.stdout + judged.stderr


def test_the_unit_gives_a_stop_the_time_that_it_needs() -> None:
    drain = Settings.model_fields["drain_seconds"].default
    assert int(in_unit("TimeoutStopSec")) >= drain + 15


@contextmanager
def service(
    folder: Path, plugin: str, unit: str = "", **settings: str
) -> Iterator[tuple[Booted, Server]]:
    """The unit, started with a plugin, settings, and lines of a drop-in; its token may do all."""
    port = free_port()
    token = tokens.add(folder / "tokens.json", "operator", "admin")
    seed_model(folder / "tree" / STATE[1:])
    config = {
        "port": port,
        "plugin_command": plugin,
        "devices": "cpu",
        "min_free_bytes": 0,
        "tokens_file": "/etc/pfms/tokens.json",
        "audit_log": "/var/log/pfms/audit.jsonl",
        **settings,
    }
    files = {
        "/etc/pfms/config.env": "".join(f"PFMS_{k.upper()}={v}\n" for k, v in config.items()),
        "/etc/pfms/tokens.json": (folder / "tokens.json").read_text(),
        f"{booted.UNITS}/{UNIT.name}.d/more.conf": f"[Service]\n{unit}\n",
    }
    with booted.booted(folder, UNIT, files) as up:
        log = up.seen(LOG)
        eventually(lambda: answers(port) or up.shows("pfms", "ActiveState") == "failed")
        assert up.shows("pfms", "ActiveState") == "active", log.read_text()
        server = Server(up.seen(STATE), up.process, f"http://127.0.0.1:{port}", log)
        server.http.headers.update(tokens.bearer(token))
        with server.http:
            yield up, server


@needs_a_boot
def test_a_run_under_the_unit_has_few_rights(tmp_path: Path) -> None:
    with service(tmp_path, f"{SOURCE}/tests/plugins/reaches_out.py") as (up, server):
        job = server.submit()
        eventually(lambda: "groups" in log_of(server, job))
        said = log_of(server, job)
        (folder_of(server, job) / "end").touch()
        assert server.ended(job)["state"] == "succeeded", said

        assert "writes to /var/cache/pfms /var/log/pfms /dev/shm /tmp\n" in said
        main = Path(f"/proc/{process_of(up, int(up.shows('pfms', 'MainPID')))}")
        assert " / / ro," in (main / "mountinfo").read_text()
        status = (main / "status").read_text()
        for line in ("NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"):
            assert line in status
        assert '"event"' in up.seen("/var/log/pfms/audit.jsonl").read_text()
        if (
            limit := up.shows("pfms", "EffectiveMemoryMax") or up.shows("pfms", "MemoryMax")
        ).isdigit():
            assert value(server, "pfms_memory_limit_bytes") == int(limit) - (512 << 20)


def process_of(up: Booted, pid: int) -> int:
    """The ID here of a process that has this ID in systemd's namespace."""
    for process in psutil.Process(up.init).children(recursive=True):
        status = Path(f"/proc/{process.pid}/status").read_text()
        if re.search(rf"^NSpid:\t.*\t{pid}$", status, re.MULTILINE):
            return process.pid
    raise AssertionError(f"there is no process {pid}")


@needs_a_boot
def test_a_stop_by_systemd_lets_a_run_end(tmp_path: Path) -> None:
    with service(tmp_path, f"{SOURCE}/tests/plugins/reaches_out.py") as (up, server):
        job = server.submit()
        eventually(lambda: "groups" in log_of(server, job))
        up.run("systemctl", "stop", "--no-block", "pfms")
        ready = f"{server.url}/health/ready"
        eventually(lambda: "draining" in server.http.get(ready).json()["missing"])
        (folder_of(server, job) / "end").touch()
        eventually(lambda: up.shows("pfms", "ActiveState") == "inactive")

        assert up.shows("pfms", "Result") == "success"
        assert '"succeeded"' in (folder_of(server, job) / "job.json").read_text()


@needs_a_boot
def test_systemd_starts_it_again_after_a_crash_but_not_with_a_wrong_setting(tmp_path: Path) -> None:
    plugin = f"{SOURCE}/tests/plugins/ok.py"
    with service(tmp_path, plugin, "RestartSec=0", executor="fresh") as (up, server):
        up.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "pfms")
        eventually(lambda: up.shows("pfms", "NRestarts") == "1")
        eventually(lambda: answers(int(server.url.rpartition(":")[2])))
        assert server.infer().status_code == 200

        with up.seen("/etc/pfms/config.env").open("a") as config:
            config.write("PFMS_QUEUE_LIMIT=none\n")
        up.run("systemctl", "restart", "pfms")
        eventually(lambda: up.shows("pfms", "ActiveState") == "failed")
        assert up.shows("pfms", "NRestarts") == "0"
        assert up.shows("pfms", "ExecMainStatus") == "2"
        assert "PFMS_QUEUE_LIMIT='none' is not valid" in server.log.read_text()


@needs_a_boot
@pytest.mark.real
def test_the_real_plugin_and_the_check_of_weights_work_under_the_unit(tmp_path: Path) -> None:
    with service(tmp_path, "spleenseg") as (_, server):
        with (ROOT / "examples" / "demo_model.pth").open("rb") as weights:
            stored = server.http.post(
                "/spleenseg/modelpth/", params={"modelID": "phantoms"}, files={"file": weights}
            )
        assert stored.status_code == 200, stored.text
        phantom = make_phantom(1)
        answer = server.infer(phantom.volume.to_bytes(), "phantoms")
        assert answer.status_code == 200, answer.text
        labels = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        assert dice(np.asanyarray(labels.dataobj), np.asanyarray(phantom.truth.dataobj)) > 0.8
        # Where the kernel has both, as outside of the unit, the check of weights lacks nothing.
        assert "WARNING" not in server.log.read_text()
