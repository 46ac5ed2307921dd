"""A process that stays for the next run of its slot and kind: when, and what it puts back."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pfms.executors.base import Executor
from pfms.executors.fresh import FreshExecutor
from pfms.executors.warm import WarmExecutor
from pfms.plugin import PLUGIN
from pfms.plugin.command import PluginCommand, resolve_command
from pfms.plugin.types import PluginExit, PluginRun
from pfms.processes.marks import JOB_MARK, WORKSPACE_MARK, find_marked
from tests.conftest import PLUGINS, seed_model, start, until
from tests.house import House, a_house
from tests.test_adaptations import job, outputs

pytestmark = pytest.mark.anyio

SAYS_ITS_PID = "import os\nprint(os.getpid(), os.environ['PFMS_JOB'], os.getcwd())"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with a_house(tmp_path) as house:
        yield house


async def run(executor: Executor, call: PluginRun) -> tuple[PluginExit, str]:
    end = await executor.run(call)
    return end, call.log.read_text()


async def pid_of(executor: Executor, call: PluginRun) -> int:
    end, log = await run(executor, call)
    assert (end.code, end.ended_by) == (0, "itself"), log
    return int(log.split()[0])


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children(house: House) -> list[int]:
    """The forks of the living parents."""
    return [child.pid for pid in house.parents() for child in psutil.Process(pid).children()]


async def test_by_default_each_run_has_a_process_of_its_own(house: House) -> None:
    command = house.script(SAYS_ITS_PID)
    executor = await house.warmed(command)
    first, second = [await pid_of(executor, house.call(command)) for _ in range(2)]
    assert first != second
    await until(lambda: not lives(second))


async def test_the_next_run_of_a_slot_is_in_the_same_process_with_its_own_log_folder_and_mark(
    house: House,
) -> None:
    command = house.script(SAYS_ITS_PID)
    executor = await house.warmed(command, runs_per_process=3)
    found = []
    for _ in range(3):
        call = house.call(command)
        end, log = await run(executor, call)
        pid, mark, folder = log.split()
        assert (end.code, mark, folder) == (0, call.job, str(call.root))
        assert end.peak_memory
        found.append(int(pid))
    assert len(set(found)) == 1
    await until(lambda: not lives(found[0]))  # it has had its three runs
    assert await pid_of(executor, house.call(command)) != found[0]


async def test_a_waiting_process_is_no_part_of_the_run_that_has_ended(house: House) -> None:
    command = house.script(SAYS_ITS_PID)
    executor = await house.warmed(command, runs_per_process=3)
    call = house.call(command)
    pid = await pid_of(executor, call)
    assert find_marked(JOB_MARK, call.job) == []
    assert pid in [marked.pid for marked in find_marked(WORKSPACE_MARK, house.mark)]
    process = psutil.Process(pid)
    assert process.cwd() == "/"
    assert [file.path for file in process.open_files() if call.root.name in file.path] == []
    assert os.readlink(f"/proc/{pid}/fd/1") == os.devnull  # noqa: PTH115


async def test_a_run_of_another_kind_gets_another_process_and_the_slots_own_is_ended(
    house: House,
) -> None:
    command = house.script(SAYS_ITS_PID)
    executor = await house.warmed(command, runs_per_process=9)
    first = await pid_of(executor, house.call(command))
    other = await pid_of(executor, replace(house.call(command), kind="another model"))
    assert other != first
    await until(lambda: children(house) == [other])


async def test_each_slot_has_a_process(house: House) -> None:
    command = house.script(SAYS_ITS_PID)
    executor = await house.warmed(command, runs_per_process=9)
    calls = [replace(house.call(command), slot=f"cpu/{n}") for n in (0, 1, 0, 1)]
    found = [await pid_of(executor, call) for call in calls]
    assert found[:2] == found[2:]
    assert found[0] != found[1]
    assert sorted(children(house)) == sorted(found[:2])
    other = replace(house.call(command), slot="cpu/0", kind="another model")
    now = {await pid_of(executor, other), found[1]}
    await until(lambda: set(children(house)) == now)


ENDS_ITS_PROCESS = {
    "an exit code": ("raise SystemExit(3)", 3, ""),
    "an error": ("raise ValueError", 1, ""),
    "a signal": ("os.kill(os.getpid(), 9)", None, ""),
    "an exit at once": ("os._exit(0)", 0, ""),
    "a thread": (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
        0,
        "a thread",
    ),
    "a function for the exit": (
        "import atexit; atexit.register(print, 'bye')",
        0,
        "something to be done at its exit",
    ),
    "a child": ("import subprocess; left = subprocess.Popen(['sleep', '99'])", 0, "a process"),
    "an orphan": ("import subprocess; subprocess.run('sleep 99 &', shell=True)", 0, "a process"),
    "a file": ("import json; json.kept = open('kept', 'w')", 0, "an open file"),
    "its log": ("os.dup(1)", 0, "an open file"),
}


@pytest.mark.parametrize(("text", "code", "left"), ENDS_ITS_PROCESS.values(), ids=ENDS_ITS_PROCESS)
async def test_a_run_that_does_not_end_well_or_leaves_something_is_the_last_of_its_process(
    house: House, caplog: pytest.LogCaptureFixture, text: str, code: int | None, left: str
) -> None:
    command = house.script(f"import os\nprint(os.getpid(), flush=True)\n{text}")
    executor = await house.warmed(command, runs_per_process=9)
    with caplog.at_level(logging.INFO):
        end, log = await run(executor, house.call(command))
    assert end.code == code, log
    assert (f"left {left}" in caplog.text) == bool(left)
    first = int(log.split()[0])
    await until(lambda: not lives(first))
    house.script(SAYS_ITS_PID)
    assert await pid_of(executor, house.call(command)) != first


async def test_a_cancelled_run_ends_its_process_and_so_does_the_time_limit(house: House) -> None:
    command = house.script(SAYS_ITS_PID)
    executor = await house.warmed(command, runs_per_process=9)
    first = await pid_of(executor, house.call(command))

    house.script((PLUGINS / "ignores_term.py").read_text())
    call = house.call(command)
    running = asyncio.create_task(executor.run(call))
    await until(lambda: call.log.exists() and "ignoring" in call.log.read_text())
    assert find_marked(JOB_MARK, call.job)[0].pid == first
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not lives(first)
    assert find_marked(JOB_MARK, call.job) == []

    house.script(SAYS_ITS_PID)
    second = await pid_of(executor, house.call(command))
    house.script("import time; time.sleep(99)")
    end = await executor.run(replace(house.call(command), time_limit=0.5))
    assert end.ended_by == "time-limit"
    assert not lives(second)


async def test_a_process_that_has_waited_for_long_is_ended(house: House) -> None:
    command = house.script(SAYS_ITS_PID)
    executor = await house.warmed(command, runs_per_process=9, idle_seconds=0.1)
    first = await pid_of(executor, house.call(command))
    await until(lambda: not lives(first))
    assert await pid_of(executor, house.call(command)) != first


async def test_a_process_that_is_killed_while_it_waits_is_replaced(house: House) -> None:
    command = house.script(SAYS_ITS_PID)
    executor = await house.warmed(command, runs_per_process=9)
    first = await pid_of(executor, house.call(command))
    os.kill(first, signal.SIGKILL)
    assert await pid_of(executor, house.call(command)) != first


async def test_waiting_processes_end_with_their_parent_however_it_ends(house: House) -> None:
    command = house.script(SAYS_ITS_PID)
    executor = await house.warmed(command, runs_per_process=9)
    first = await pid_of(executor, house.call(command))
    (parent,) = house.parents()
    os.kill(parent, signal.SIGKILL)
    await until(lambda: not lives(first))
    await until(lambda: house.parents() not in ([], [parent]))  # a run before that would be lost
    second = await pid_of(executor, house.call(command))
    await executor.close()
    assert not lives(second)


async def test_a_changed_plugin_ends_the_waiting_process(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = house.folder / "spleenseg"
    package.mkdir()
    (package / "__init__.py").touch()
    module = package / "spleenseg.py"
    module.write_text("import os\ndef main(): print(os.getpid(), 'old')")
    monkeypatch.setenv("PYTHONPATH", str(house.folder))
    command = PluginCommand(
        ("/usr/bin/of-the-plugin",), sys.executable, "entry-point", "spleenseg.spleenseg:main"
    )
    executor = await house.warmed(command, runs_per_process=9)
    first = await pid_of(executor, house.call(command))
    module.write_text("import os\ndef main(): print(os.getpid(), 'this is new')")
    assert "this is new" in (await run(executor, house.call(command)))[1]
    await until(lambda: not lives(first))


# Everything that can be put back, as one line of JSON; then changed.
CHANGES = """
import spleenseg.spleenseg  # so that the parent loads all of it
import json, matplotlib, numpy, os, random, signal, sys, torch, warnings
from matplotlib import pyplot
def state():
    return [
        os.getcwd() == os.environ["FOLDER"], sorted(os.environ), os.umask(0o007), sys.path[1:],
        sys.argv, str(signal.getsignal(signal.SIGTERM)), str(signal.getsignal(signal.SIGALRM)),
        signal.getitimer(signal.ITIMER_REAL), str(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        sys.stdout is sys.__stdout__, sys.excepthook is sys.__excepthook__,
        str(warnings.filters), pyplot.get_fignums(), matplotlib.rcParams["figure.dpi"],
        random.random(), numpy.random.rand(), torch.rand(1).item(), torch.initial_seed(),
        str(torch.get_default_dtype()), str(torch.get_default_device()), torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(), torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    ]
print(os.getpid(), json.dumps(state()))
os.environ["MORE"] = "1"; del os.environ["HOME"]
os.umask(0); sys.path.insert(0, "elsewhere"); sys.argv.append("more")
signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 1000); signal.pthread_sigmask(signal.SIG_BLOCK, [10])
sys.excepthook = print; warnings.simplefilter("error")
pyplot.figure("Infer"); matplotlib.rcParams["figure.dpi"] = 7
torch.manual_seed(7); torch.set_default_dtype(torch.float64); torch.set_default_device("meta")
torch.set_grad_enabled(False); torch.set_float32_matmul_precision("medium")
torch.set_num_threads(1); torch.use_deterministic_algorithms(True)
torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = True
json.seen = "the state of modules stays"
"""


@pytest.mark.real
async def test_what_a_run_changes_in_its_process_is_put_back(house: House) -> None:
    command = house.script(CHANGES)
    executor = await house.warmed(command, PLUGIN.environment(), runs_per_process=9)
    found = []
    for _ in range(2):
        call = house.call(command)
        call = replace(call, environment={**PLUGIN.environment(), "FOLDER": str(call.root)})
        end, log = await run(executor, call)
        assert end.code == 0, log
        pid, _, state = log.partition(" ")
        found.append((pid, json.loads(state)))
    assert found[0] == found[1]
    assert found[0][1][0] is True


@pytest.mark.real
@pytest.mark.timeout(300)
async def test_the_plugin_gives_the_same_voxels_run_after_run_in_one_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = resolve_command("spleenseg")
    kept = WarmExecutor(command, PLUGIN.environment(), runs_per_process=9)
    await kept.start()
    forms = [
        {},
        {"orientation": "PIR", "tilt_degrees": 12.0, "shape": (60, 44, 40)},
        {},
    ]
    by_kept = []
    try:
        for turn, form in enumerate(forms):
            call = replace(job(tmp_path / f"kept-{turn}", command, **form), slot="cpu/0")
            with caplog.at_level(logging.INFO):
                by_kept.append(await outputs(kept, call))
    finally:
        await kept.close()
    assert "was run 3 of its process" in caplog.text
    assert by_kept[0] == by_kept[2]
    for turn, form in enumerate(forms[:2]):
        fresh = job(tmp_path / f"fresh-{turn}", command, **form)
        assert by_kept[turn] == await outputs(FreshExecutor(), fresh)
        pictures = [
            (tmp_path / f"{way}-{turn}" / "output" / "inference" / "infer-1.png").read_bytes()
            for way in ("kept", "fresh")
        ]
        assert pictures[0] == pictures[1]


def test_jobs_of_one_owner_and_model_follow_each_other_in_one_process_and_no_others(
    tmp_path: Path,
) -> None:
    plugin = tmp_path / "says.py"
    plugin.write_text(
        f"import nibabel, numpy, os, sys\nsys.path.insert(0, {str(PLUGINS)!r})\n"
        "from common import segment\nprint('pid', os.getpid())\nsegment()"
    )
    workspace = tmp_path / "workspace"
    seed_model(workspace)
    seed_model(workspace, "twin")
    seed_model(workspace, "other", b"other weights")
    program = ("-m", "tests.named_callers")
    server = start(workspace, plugin, program, executor="warm", runs_per_process=9)

    def process_of(owner: str, model: str = "demo") -> str:
        caller = {"Test-Caller": f"{owner} infer"}
        answer = server.infer(model=model, headers=caller)
        assert answer.status_code == 200, answer.text
        log = server.http.get(f"/jobs/{answer.headers['x-pfms-job']}/log", headers=caller).text
        return log.partition("pid ")[2].split()[0]

    try:
        first = process_of("alice")
        assert process_of("alice") == first
        assert process_of("alice", "twin") == first, "the same weights under another name"
        assert process_of("alice", "other") != first
        bobs = process_of("bob", "other")
        assert bobs == process_of("bob", "other") != process_of("alice", "other")
        running = psutil.Process(server.process.pid).children(recursive=True)
    finally:
        server.stop()
    assert not any(process.is_running() for process in running)
