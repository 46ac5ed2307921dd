"""Warm parents and their servers start, die and are replaced."""

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pfms.executors import warm_link
from pfms.executors.base import Missing
from pfms.executors.choice import make_executor
from pfms.executors.fresh import FreshExecutor
from pfms.executors.warm import WarmExecutor
from pfms.metrics import Metrics
from pfms.plugin.command import PluginCommand, resolve_command
from pfms.processes.marks import JOB_MARK, WORKSPACE_MARK, find_marked
from pfms.settings import load_settings
from tests.conftest import PLUGINS, ROOT, StartServer, eventually, until
from tests.house import House, a_house, lives

NOTHING = Missing("", "")
pytestmark = pytest.mark.anyio


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with a_house(tmp_path) as house:
        yield house


def entry_point(name: str) -> PluginCommand:
    return PluginCommand(("/usr/bin/of-the-plugin",), sys.executable, "entry-point", name)


def the_plugin(
    house: House, monkeypatch: pytest.MonkeyPatch, text: str
) -> tuple[PluginCommand, Path]:
    """A module of the plugin's package, which is watched, and the command that calls it."""
    package = house.folder / "spleenseg"
    package.mkdir()
    (package / "__init__.py").touch()
    module = package / "spleenseg.py"
    module.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(house.folder))
    return entry_point("spleenseg.spleenseg:main"), module


async def test_runs_wait_while_the_plugin_is_imported_and_can_be_cancelled(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    (house.folder / "slow_to_import.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(house.folder / 'go')!r}):\n"
        "    time.sleep(0.01)\ndef main():\n    print('ran'); return 3"
    )
    monkeypatch.setenv("PYTHONPATH", str(house.folder))
    command = entry_point("slow_to_import:main")
    executor = house.warm(command)
    starting = asyncio.create_task(executor.start())
    waiting, cancelled = (asyncio.create_task(house.run(executor, command)) for _ in range(2))
    await until(lambda: house.parents() != [])
    assert (executor.missing() or NOTHING).name == "warming"
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert not waiting.done()

    (house.folder / "go").touch()
    end, log = await waiting
    assert (end.code, log) == (3, "ran\n")
    await starting
    assert executor.missing() is None


@pytest.mark.timeout(30)
async def test_a_watched_path_that_does_not_exist_does_not_hold_the_server(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's Python names folders of packages that do not exist."""
    command, _ = the_plugin(
        house,
        monkeypatch,
        "import os, time\ntime.sleep(2)\nos.unlink(__file__)\ndef main():\n    print('ran')",
    )
    executor = await house.warmed(command)
    assert (await house.run(executor, command))[1] == "ran\n"


async def test_a_run_whose_parent_dies_is_lost_without_a_trace_and_the_next_gets_another_parent(
    house: House,
) -> None:
    ignores_term = (PLUGINS / "ignores_term.py").read_text()
    command = house.script(ignores_term)
    executor = await house.warmed(command)
    (parent,) = house.parents()
    call = house.call(command)
    running = asyncio.create_task(executor.run(call))
    await until(lambda: call.log.exists() and "ignoring" in call.log.read_text())

    os.kill(parent, signal.SIGKILL)
    end = await running
    assert (end.code, end.ended_by) == (None, "executor")
    assert end.message
    assert find_marked(JOB_MARK, call.job) == []

    house.script("print('ran')")
    assert (await house.run(executor, command))[1] == "ran\n"


async def test_a_parent_that_hangs_is_ended_and_its_run_is_lost(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_link, "_FORK_SECONDS", 0.2)
    command = house.script("print('ran')")
    executor = await house.warmed(command)
    (parent,) = house.parents()
    os.kill(parent, signal.SIGSTOP)
    end = await executor.run(house.call(command))
    assert (end.code, end.ended_by) == (None, "executor")
    monkeypatch.undo()
    assert (await house.run(executor, command))[1] == "ran\n"
    assert house.parents() not in ([parent], [])


async def test_a_parent_that_dies_idle_is_replaced(house: House) -> None:
    command = house.script("print('ran')")
    executor = await house.warmed(command)
    (parent,) = house.parents()
    os.kill(parent, signal.SIGKILL)
    await until(lambda: house.parents() not in ([parent], []))
    end, log = await house.run(executor, command)
    assert (end.code, log) == (0, "ran\n")


async def test_a_plugin_that_does_not_start_fails_runs_with_the_cause_until_it_is_repaired(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(house.folder))
    command = entry_point("not_there_yet:main")
    executor = await house.warmed(command)
    assert (executor.missing() or NOTHING).name == "plugin-broken"
    end = await executor.run(house.call(command))
    assert (end.code, end.ended_by) == (None, "not-started")
    assert "No module named 'not_there_yet'" in end.message

    (house.folder / "not_there_yet.py").write_text("def main():\n    print('mended')")
    await until(lambda: executor.missing() is None)
    assert (await house.run(executor, command))[1] == "mended\n"


async def test_a_plugin_that_was_broken_for_a_long_time_is_used_again_once_repaired(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    python, script = house.folder / "python", house.folder / "plugin.py"
    script.write_text("print('mended')")
    command = PluginCommand((str(python), str(script)), str(python), "script")
    executor = WarmExecutor(command, {}, house.mark, pause_seconds=0)
    house.executors.append(executor)
    await executor.start()
    await until(lambda: len(caplog.records) > 1100)  # 2.0**1024 would overflow
    assert (executor.missing() or NOTHING).name == "plugin-broken"

    python.symlink_to(sys.executable)
    await until(lambda: executor.missing() is None)
    assert (await house.run(executor, command))[1] == "mended\n"


async def test_after_an_error_in_the_executor_itself_a_start_is_tried_again(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    command = house.script("print('ran')")
    executor = house.warm(command)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds(), limit[1]))
    try:
        starting = asyncio.create_task(executor.start())
        await until(lambda: "Too many open files" in caplog.text)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    await starting
    assert (await house.run(executor, command))[1] == "ran\n"


async def test_a_run_whose_parent_dies_while_it_forks_does_not_go_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    (house.folder / "slow_to_fork.py").write_text(
        "import os, pathlib, time\n"
        "def in_child():\n    pathlib.Path('forked').touch(); time.sleep(1)\n"
        "os.register_at_fork(after_in_child=in_child)\n"
        f"os.chdir({str(house.folder)!r})\n"
        "def main():\n    print('it went on')"
    )
    monkeypatch.setenv("PYTHONPATH", str(house.folder))
    command = entry_point("slow_to_fork:main")
    executor = await house.warmed(command)
    (parent,) = house.parents()
    call = house.call(command)
    running = asyncio.create_task(executor.run(call))
    await until((house.folder / "forked").exists)
    (child,) = psutil.Process(parent).children()
    os.kill(parent, signal.SIGKILL)
    assert (await running).ended_by == "executor"
    await until(lambda: not lives(child))
    assert call.log.read_text() == ""


async def test_a_process_that_the_plugins_import_starts_does_not_end_the_parent(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    (house.folder / "starts_another.py").write_text(
        "import subprocess\nsubprocess.Popen(['true'])\ndef main(): print('ran')"
    )
    monkeypatch.setenv("PYTHONPATH", str(house.folder))
    command = entry_point("starts_another:main")
    executor = await house.warmed(command)
    parents = house.parents()
    for _ in range(2):
        assert (await house.run(executor, command))[1] == "ran\n"
    assert house.parents() == parents


async def test_what_changes_during_the_import_is_imported_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, module = the_plugin(
        house,
        monkeypatch,
        "import pathlib, time\npathlib.Path(__file__).with_name('reads').touch()\n"
        "time.sleep(0.5)\ndef main(): print('old')",
    )
    executor = house.warm(command)
    starting = asyncio.create_task(executor.start())
    await until(module.with_name("reads").exists)
    module.write_text("def main(): print('new')")
    await starting
    parents = house.parents()
    assert (await house.run(executor, command))[1] == "new\n"
    await until(lambda: len(house.parents()) == 1)
    assert house.parents() != parents
    now = house.parents()
    assert (await house.run(executor, command))[1] == "new\n"
    assert house.parents() == now


DIES_OF_A_CRASH = """
import ctypes, sys
print("a library that is too old", file=sys.stderr, flush=True)
ctypes.string_at(0)
"""
ENDS = [
    ("import os; os._exit(5)", "with exit code 5"),
    ("import sys; sys.exit('it may not be')", "it may not be"),
    ("import os, sys; sys.stderr.write('x' * 99_999 + '\\n\\nno\\n'); os._exit(5)", "code 5: no"),
    ("import os; os.kill(os.getpid(), 9)", "by SIGKILL"),
    (DIES_OF_A_CRASH, "by SIGSEGV: a library that is too old"),
    ("import faulthandler; faulthandler.enable()" + DIES_OF_A_CRASH, "Fatal Python error: Seg"),
]


@pytest.mark.parametrize(("text", "words"), ENDS)
async def test_a_plugin_that_ends_its_parent_is_reported_as_broken_with_its_last_message(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    text: str,
    words: str,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(house.folder))
    (house.folder / "ends_at_import.py").write_text(text)
    command = entry_point("ends_at_import:main")
    executor = await house.warmed(command)
    assert (executor.missing() or NOTHING).name == "plugin-broken"
    end = await executor.run(house.call(command))
    assert words in end.message
    assert len(end.message) < 500
    assert house.parents() == []
    if "x" * 9 in text:
        assert capfd.readouterr().err.count("x" * 99_999) >= 3, "the server's log has all of it"


async def test_what_the_plugin_prints_when_imported_is_in_the_servers_log(
    house: House, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(house.folder))
    (house.folder / "says.py").write_text(
        "import subprocess, sys\nprint('on stdout', flush=True)\n"
        "print('on stderr', file=sys.stderr)\n"
        "holds_the_pipe = subprocess.Popen(['sleep', '3600'])\ndef main(): print('ran')"
    )
    command = entry_point("says:main")
    executor = await house.warmed(command)
    said = ""
    while "on stderr" not in said:
        await asyncio.sleep(0)
        said += capfd.readouterr().err
    assert said == "on stdout\non stderr\n"

    (parent,) = house.parents()
    (child,) = psutil.Process(parent).children()
    os.kill(parent, signal.SIGKILL)
    child.kill()
    await until(lambda: house.parents() not in ([parent], []))
    assert (await house.run(executor, command))[1] == "ran\n"
    for other in psutil.Process(house.parents()[0]).children():
        other.kill()


async def test_a_changed_plugin_is_imported_again_and_a_run_in_progress_ends_with_the_old_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = (
        f"import os, time\ndef main():\n    print('old', flush=True)\n"
        f"    while not os.path.exists({str(house.folder / 'go')!r}): time.sleep(0.01)\n"
    )
    command, module = the_plugin(house, monkeypatch, old)
    executor = await house.warmed(command)
    call = house.call(command)
    running = asyncio.create_task(executor.run(call))
    await until(lambda: call.log.exists() and call.log.read_text() == "old\n")

    module.write_text("def main(): print('this is new')")
    assert (await house.run(executor, command))[1] == "this is new\n"
    assert not running.done()
    (house.folder / "go").touch()
    assert (await running).code == 0
    await until(lambda: len(house.parents()) == 1)


async def test_a_run_that_cannot_enter_its_folder_is_not_started(house: House) -> None:
    command = house.script("print('ran')")
    executor = await house.warmed(command)
    call = house.call(command)
    call.root.rename(house.folder / "elsewhere")
    call = replace(call, log=house.folder / "plugin.log")
    end = await executor.run(call)
    assert (end.ended_by, end.message) == ("not-started", "The job's folder is not there.")


async def test_two_hundred_runs_leave_no_trace(house: House) -> None:
    command = house.script("x = bytearray(1_000_000)")
    executor = await house.warmed(command)
    (parent,) = house.parents()

    async def some(number: int) -> tuple[int, ...]:
        for _ in range(number):
            end, _log = await house.run(executor, command)
            assert end.code == 0
        us, them = psutil.Process(), psutil.Process(parent)
        await until(lambda: them.children() == [])
        return us.num_fds(), them.num_fds(), us.num_threads(), them.num_threads()

    first = await some(20)
    memory = psutil.Process(parent).memory_info().rss
    last = await some(180)
    assert last[0] <= first[0] + 1
    assert last[1] == first[1]
    assert last[3] == first[3] == 1
    assert psutil.Process(parent).memory_info().rss <= memory + (1 << 20)
    assert house.parents() == [parent]


SERVER_THAT_IS_KILLED = """
import asyncio, sys
from pathlib import Path
from pfms.executors.base import PluginRun
from pfms.executors.warm import WarmExecutor
from pfms.plugin.command import resolve_command

async def main(plugin, root, mark):
    command = resolve_command(plugin)
    executor = WarmExecutor(command, {}, mark)
    await executor.start()
    await executor.run(PluginRun(
        "of-a-killed-server", Path(root), (*command.argv, "x"), {}, Path(root, "log"), 60, 1
    ))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_when_a_server_is_killed_its_parent_and_their_runs_end(
    house: House, tmp_path: Path
) -> None:
    line = [sys.executable, "-c", SERVER_THAT_IS_KILLED, str(PLUGINS / "ignores_term.py")]
    server = await asyncio.create_subprocess_exec(*line, str(tmp_path), house.mark, cwd=ROOT)
    log = tmp_path / "log"
    await until(lambda: log.exists() and "ignoring" in log.read_text())
    await until(lambda: len(find_marked(WORKSPACE_MARK, house.mark)) >= 4)

    server.kill()
    await server.communicate()
    await until(lambda: find_marked(WORKSPACE_MARK, house.mark) == [])


def test_a_server_is_ready_once_it_is_warm_and_a_dead_parent_does_not_fail_a_job(
    start_server: StartServer, tmp_path: Path
) -> None:
    flag, plugin = tmp_path / "flag", tmp_path / "waits.py"
    plugin.write_text(
        f"import os, sys, time\nsys.path.insert(0, {str(PLUGINS)!r})\n"
        "from common import segment\nprint('waiting', flush=True)\n"
        f"if os.path.exists({str(flag)!r}): time.sleep(60)\nsegment()"
    )
    server = start_server(plugin, executor="warm")
    job_id = server.submit()
    assert server.ended(job_id)["state"] == "succeeded"
    assert server.job(job_id)["executor"] == "warm"
    assert server.http.get(f"{server.url}/health/ready").status_code == 200

    (parent,) = (p for p in psutil.Process(server.process.pid).children())
    flag.touch()
    job_id = server.submit()
    log = server.workspace / "jobs" / job_id / "plugin.log"
    eventually(lambda: log.exists() and "waiting" in log.read_text())
    flag.unlink()
    parent.kill()
    job = server.ended(job_id)
    assert (job["state"], job["attempts"]) == ("succeeded", 2)


def test_the_next_server_ends_everything_that_a_killed_warm_server_left(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", executor="warm")
    job_id = server.submit()
    log = server.workspace / "jobs" / job_id / "plugin.log"
    eventually(lambda: log.exists() and "hanging" in log.read_text())
    family = psutil.Process(server.process.pid).children(recursive=True)
    assert len(family) == 2
    for process in (psutil.Process(server.process.pid), *family[:1]):
        process.kill()
    server.stop(signal.SIGKILL)
    server = start_server("ok.py", executor="warm")
    assert server.ended(job_id)["state"] == "succeeded"
    assert not any(map(lives, family))


def test_a_command_that_cannot_be_forked_is_run_fresh_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load_settings(executor="warm", workspace=tmp_path)
    command = PluginCommand(("/opt/other/bin/spleenseg",), "/opt/other/bin/python", "foreign")
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_executor(settings, command, Metrics()), FreshExecutor)
    assert "'/opt/other/bin/spleenseg'" in caplog.text
    kept = resolve_command(str(PLUGINS / "ok.py"))
    assert isinstance(make_executor(settings, kept, Metrics()), WarmExecutor)
