"""What a run may take and leave: its log has a bound, nothing of it outlives it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pfms.processes.output import BoundedLog
from pfms.programs import WEIGHTS_CHILD
from tests.conftest import ROOT, Server, StartServer, eventually, seed_model

MOST = 64 << 10
NOTE = re.compile(rb"\n\[pfms left out (\d+) bytes here: PFMS_MAX_LOG_BYTES\]\n")


def lines(count: int) -> bytes:
    return b"".join(b"line %07d\n" % number for number in range(count))


# --- the log ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 5041, 5042, 20_000, 400_000])
@pytest.mark.parametrize("piece", [1000, 8192])
def test_a_log_keeps_its_head_and_tail_and_says_how_much_is_missing(
    tmp_path: Path, count: int, piece: int
) -> None:
    text, path = lines(count), tmp_path / "log"
    log = BoundedLog(path, MOST)
    for start in range(0, len(text), piece):
        log.write(text[start : start + piece])
        if start % 50_000 == 0:
            assert path.stat().st_size <= MOST
    log.close()

    kept = path.read_bytes()
    assert len(kept) <= MOST
    if len(text) <= MOST:
        assert kept == text
        return
    (missing,) = NOTE.findall(kept)
    head, _, tail = NOTE.split(kept)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) == MOST // 2
    assert len(tail) >= MOST // 4
    assert len(head) + int(missing) + len(tail) == len(text)


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"of someone else")
    (tmp_path / "log").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="is a link"):
        BoundedLog(tmp_path / "log", MOST)


@pytest.mark.parametrize("executor", ["fresh", "warm"])
def test_endless_output_costs_no_disk_and_can_be_followed(
    start_server: StartServer, executor: str
) -> None:
    server = start_server(
        "escaping/prints_without_end.py", executor=executor, max_log_bytes="64KiB"
    )
    job_id = server.submit()
    url = f"/jobs/{job_id}/log"
    eventually(lambda: b"left out" in server.http.get(url).content)
    log = server.http.get(url).content
    assert log.startswith(b"the first words\n")

    server.http.post(f"/jobs/{job_id}/cancel")
    assert server.ended(job_id)["state"] == "cancelled"
    log = server.http.get(url).content
    assert len(log) <= MOST
    assert log.startswith(b"the first words\n")
    assert len(NOTE.findall(log)) == 1
    assert log.rstrip().endswith(b"the last words")


# --- what escapes ----------------------------------------------------------------------------


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def daemon_of(server: Server, job_id: str) -> int:
    """The process ID of the daemon that a job's run has started."""
    file = server.workspace / "jobs" / job_id / "daemon.pid"
    eventually(lambda: file.exists() and file.read_text())
    return int(file.read_text())


def with_daemons(start_server: StartServer, executor: str, **settings: object) -> Server:
    server = start_server(
        "escaping/leaves_a_daemon.py", executor=executor, grace_seconds=0.3, **settings
    )
    for model in ("hangs", "killed", "leaves"):
        seed_model(server.workspace, model, model.encode())
    return server


@pytest.mark.parametrize("executor", ["fresh", "warm"])
def test_a_daemon_with_its_own_session_and_no_environment_ends_with_its_run(
    start_server: StartServer, executor: str
) -> None:
    server = with_daemons(start_server, executor)
    for model, state in (("demo", "succeeded"), ("killed", "failed"), ("leaves", "failed")):
        job_id = server.submit(model=model)
        daemon = daemon_of(server, job_id)
        assert server.ended(job_id)["state"] == state, model
        assert not lives(daemon), model

    job_id = server.submit(model="hangs")
    daemon = daemon_of(server, job_id)
    assert lives(daemon)
    server.http.post(f"/jobs/{job_id}/cancel")
    assert server.ended(job_id)["state"] == "cancelled"
    assert not lives(daemon)


@pytest.mark.parametrize("executor", ["fresh", "warm"])
def test_the_end_of_a_run_leaves_what_belongs_to_another_alone(
    start_server: StartServer, executor: str
) -> None:
    server = with_daemons(start_server, executor, jobs_per_device=2)
    staying = server.submit(model="hangs")
    other = daemon_of(server, staying)
    for model in ("demo", "killed"):
        job_id = server.submit(model=model)
        daemon = daemon_of(server, job_id)
        server.ended(job_id)
        assert not lives(daemon)
    assert lives(other)
    server.http.post(f"/jobs/{staying}/cancel")
    server.ended(staying)
    assert not lives(other)


@pytest.mark.parametrize("executor", ["fresh", "warm"])
def test_a_daemon_ends_when_the_server_is_killed(start_server: StartServer, executor: str) -> None:
    server = with_daemons(start_server, executor)
    daemon = daemon_of(server, server.submit(model="hangs"))
    server.stop(signal.SIGKILL)
    eventually(lambda: not lives(daemon))


# --- the check of weights --------------------------------------------------------------------

TRIES = """
import ctypes, json, os, socket, subprocess, sys
sys.path.insert(0, sys.argv[1])
import sandbox
host, port, allowed, own = sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
opened, into = open(own, "rb"), open(own + ".part", "wb")
WAYS = {
    "read": lambda: open("/etc/passwd").read(),
    "list": lambda: os.listdir("/"),
    "write": lambda: open(own + ".more", "w"),
    "remove": lambda: os.unlink(own),
    "environment": lambda: open(f"/proc/{os.getppid()}/environ").read(),
    "connect": lambda: socket.create_connection((host, port)),
    "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (host, port)),
    "local": lambda: socket.socket(socket.AF_UNIX),
    "program": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "own": lambda: opened.read(),
    "result": lambda: into.write(b"done"),
    "allowed": lambda: open(allowed).read(),
}
def outcome(way):
    try:
        way()
    except OSError as error:
        return type(error).__name__
    return "done"
left = sandbox.enter([os.path.dirname(allowed), "/not/there"])
print(json.dumps([left, {name: outcome(way) for name, way in WAYS.items()}]))
"""


def test_a_sandbox_leaves_only_what_is_open_and_what_may_be_read(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "module.py").touch()
    (tmp_path / "upload").write_bytes(b"weights")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        allowed = str(tmp_path / "packages" / "module.py")
        arguments = [str(WEIGHTS_CHILD.parent), host, str(port), allowed, str(tmp_path / "upload")]
        run = subprocess.run(
            [sys.executable, "-c", TRIES, *arguments], capture_output=True, text=True, check=True
        )
    left, outcomes = json.loads(run.stdout)
    works = {name for name, outcome in outcomes.items() if outcome == "done"}
    files = {"read", "list", "write", "remove", "environment"}
    others = {"connect", "datagram", "local", "program", "kill"}
    if any("Landlock" in words for words in left):  # this machine's kernel has none
        works -= files
    if any("seccomp" in words for words in left):
        works -= others
    assert works == {"own", "result", "allowed"}, outcomes


def test_weights_are_checked_in_a_sandbox(tmp_path: Path) -> None:
    """The network's class is looked up before the sandbox, so a spy there sees it from inside."""
    spy = tmp_path / "spy.py"
    spy.write_text(
        "import os, torch\n"
        "class network:\n"
        "    @staticmethod\n"
        "    def state_dict():\n"
        "        load = torch.load\n"
        "        def spied(*args, **named):\n"
        "            try:\n"
        "                open('/etc/passwd')\n"
        "            except PermissionError:\n"
        "                raise ValueError('GLOBAL the.sandbox')\n"
        "            return load(*args, **named)\n"
        "        torch.load = spied\n"
        "        return {}\n"
    )
    weights = ROOT / "examples" / "demo_model.pth"
    run = subprocess.run(
        [sys.executable, str(WEIGHTS_CHILD), weights, tmp_path / "stored", "spy:network"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    verdict = json.loads(run.stdout)
    if any("Landlock" in words for words in verdict["open"]):
        pytest.skip("this machine's kernel has no Landlock")
    assert "the.sandbox" in verdict["detail"]
    assert verdict["open"] == []


# --- the weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["fresh", "warm"])
def test_a_run_that_changes_its_weights_fails_and_changes_nobody_elses(
    start_server: StartServer, executor: str
) -> None:
    server = start_server("escaping/writes_into_the_weights.py", executor=executor)
    for model in ("writes", "hides", "removes", "replaces"):
        seed_model(server.workspace, model, model.encode())
        for _ in range(2):  # the second run has the weights that the first one had
            job = server.ended(server.submit(model=model))
            assert (job["state"], job["error"]["code"]) == ("failed", "plugin-failed"), model
            assert "weights" in job["error"]["detail"]
            folder = server.workspace / "jobs" / job["id"]
            stored = server.workspace / "models" / model / "model.pth"
            assert stored.read_bytes() == model.encode()
            assert stored.samefile(folder / "input" / "model.pth")
            assert not (folder / ".weights").exists()

    seed_model(server.workspace, "touches", b"touches")
    assert server.ended(server.submit(model="touches"))["state"] == "succeeded"


def test_weights_that_a_crash_left_aside_are_used_again(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    job_id = server.submit()
    folder = server.workspace / "jobs" / job_id
    eventually(lambda: (folder / ".weights").exists() and (folder / "plugin.log").exists())
    server.stop(signal.SIGKILL)
    copy = folder / "input" / "model.pth"
    assert not copy.samefile(folder / ".weights")
    copy.chmod(0o660)
    copy.write_bytes(b"")  # as after a power cut

    server = start_server("ok.py")
    assert server.ended(job_id)["state"] == "succeeded"
    assert copy.samefile(server.workspace / "models" / "demo" / "model.pth")


# --- judging ---------------------------------------------------------------------------------


FAR_AWAY = "puts its voxels far away"
JUDGED = {
    "far_voxels": (FAR_AWAY, False),
    "huge_shape": ("has the shape", False),
    "endless_gzip": ("far larger than its header says", False),
    "endless_name": ("cannot be used", False),
    "endless_zeros": (FAR_AWAY, False),
    "huge_logits": ("logits have the shape", True),
}


def test_whatever_a_result_claims_it_is_judged_soon_and_in_little_memory(
    start_server: StartServer,
) -> None:
    server = start_server("escaping/claims_much.py", max_grid_voxels=1_000_000)
    memory = psutil.Process(server.process.pid).memory_info
    assert server.ended(server.submit())["state"] == "succeeded"
    before = memory().rss
    for name, (words, logits) in JUDGED.items():
        seed_model(server.workspace, name, name.encode())
        params = {"resultant": "logits"} if logits else {}
        job = server.ended(server.submit(model=name, params=params))
        assert (job["state"], job["error"]["code"]) == ("failed", "bad-result"), name
        assert words in job["error"]["detail"], name
    assert memory().rss < before + (64 << 20)


def test_judging_that_takes_too_long_ends_as_a_bad_result(start_server: StartServer) -> None:
    server = start_server("ok.py", judge_seconds=1e-9)
    job = server.ended(server.submit())
    assert (job["state"], job["error"]["code"]) == ("failed", "bad-result")
    assert "took over 1e-09 seconds" in job["error"]["detail"]


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["fresh", "warm"])
def test_a_run_that_needs_more_memory_than_it_may_have_says_so(
    start_server: StartServer, executor: str
) -> None:
    plugin = "escaping/takes_memory.py"
    server = start_server(plugin, executor=executor, max_run_memory="1700MiB")
    assert "and 1.7GiB (RLIMIT_DATA) of memory for each process" in server.log.read_text()
    job = server.ended(server.submit())
    assert (job["state"], job["error"]["code"]) == ("failed", "out-of-memory")
    said = server.http.get(f"/jobs/{job['id']}/log").text
    assert "the kernel kills me at 500" in said
    assert Path(f"/proc/{server.process.pid}/oom_score_adj").read_text() != "500\n"
    server.stop()

    server = start_server(plugin, executor=executor)
    assert server.ended(server.submit())["state"] == "succeeded"
