"""Process groups, with real processes."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from pfms.aio import to_the_end
from pfms.plugin.types import PluginExit
from pfms.processes import kill, marks
from pfms.processes import run as process
from pfms.processes.output import keeping_output
from tests.conftest import until

PLUGINS = Path(__file__).parent / "plugins"
MARK = "PFMS_TEST_MARK"


@pytest.fixture
def job() -> Iterator[str]:
    name = f"job-{uuid.uuid4()}"
    yield name
    left = marks.find_marked(marks.JOB_MARK, name)
    for marked in left:
        os.kill(marked.pid, signal.SIGKILL)
    assert left == []


async def run(
    job: str, folder: Path, *argv: str, time_limit: float = 60, grace: float = 0.3
) -> PluginExit:
    async with keeping_output(folder / "log", 1 << 20) as output:
        return await process.run_in_group(
            argv,
            job=job,
            cwd=folder,
            environment={},
            output=output,
            time_limit=time_limit,
            grace=grace,
        )


async def sleeper(mark: str, *, own_session: bool) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        "sleep", "3600", env={**os.environ, MARK: mark}, start_new_session=own_session
    )


def in_another_process(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A program that begins with the imports and the `run` of this module."""
    prelude = """
        import asyncio, os, sys
        from pathlib import Path
        from pfms.processes.output import keeping_output
        from pfms.processes.run import run_in_group

        async def run(job, folder, *argv):
            async with keeping_output(Path(folder, "log"), 1 << 20) as output:
                return await run_in_group(
                    argv, job=job, cwd=Path(folder), environment={"PFMS_TEST_MARK": job},
                    output=output, time_limit=60, grace=0.3,
                )
    """
    text = textwrap.dedent(prelude) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "'plugin', or the interpreter that its first line names, is not there"),
        (lambda path: path.write_text("#!/bin/sh\n"), "'plugin' may not be executed"),
        (
            lambda path: (path.write_text("#!/no/such/python\n"), path.chmod(0o755)),
            "'plugin', or the interpreter that its first line names, is not there",
        ),
        (
            lambda path: (path.write_bytes(b"\x00no program"), path.chmod(0o755)),
            "'plugin' could not be started: Exec format error",
        ),
    ],
    ids=["not there", "not executable", "no interpreter", "no program"],
)
async def test_what_cannot_be_started_says_why_without_a_path(
    job: str, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "plugin")
    end = await run(job, tmp_path, str(tmp_path / "plugin"))
    assert (end.code, end.signal, end.ended_by) == (None, None, "not-started")
    assert end.message == f"{message}."


@pytest.mark.anyio
async def test_a_missing_folder_is_told_apart_from_a_missing_command(
    job: str, tmp_path: Path
) -> None:
    end = await process.run_in_group(
        ["true"],
        job=job,
        cwd=tmp_path / "gone",
        environment={},
        output=2,
        time_limit=60,
        grace=0.3,
    )
    assert (end.ended_by, end.message) == ("not-started", "The job's folder is not there.")


@pytest.mark.anyio
async def test_a_log_that_cannot_be_opened_raises(job: str, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(OSError, match="is a folder"):
        await run(job, tmp_path, "true")


@pytest.mark.anyio
@pytest.mark.parametrize("turns", range(25))
async def test_a_cancel_at_any_iteration_of_the_loop_leaves_no_process(
    job: str, tmp_path: Path, turns: int
) -> None:
    task = asyncio.create_task(run(job, tmp_path, "sleep", "3600"))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert marks.find_marked(marks.JOB_MARK, job) == []


def test_a_loop_that_closes_during_a_run_leaves_no_process(job: str, tmp_path: Path) -> None:
    code = """
        async def main():
            running = asyncio.create_task(run(*sys.argv[1:]))
            while not Path(sys.argv[2], "log").exists() or not Path(sys.argv[2], "log").read_text():
                await asyncio.sleep(0.01)

        asyncio.run(main())
    """
    script = str(PLUGINS / "ignores_term.py")
    with in_another_process(code, job, str(tmp_path), sys.executable, script) as server:
        assert server.wait() == 0
    assert "ignoring" in (tmp_path / "log").read_text()
    assert marks.find_marked(marks.JOB_MARK, job) == []


@pytest.mark.anyio
async def test_processes_that_outlived_a_killed_server_are_found_and_ended(
    job: str, tmp_path: Path
) -> None:
    code = "asyncio.run(run(*sys.argv[1:]))"
    script = str(PLUGINS / "ignores_term.py")
    with in_another_process(code, job, str(tmp_path), sys.executable, script) as server:
        await until(lambda: len(marks.find_marked(MARK, job)) == 4)
        (keeper,) = psutil.Process(server.pid).children()
        keeper.kill()  # it would end them
        server.kill()
    stranger = await sleeper("another workspace", own_session=True)
    assert len(marks.find_marked(MARK, job)) == 3
    assert await kill.end_marked(MARK, job) == 3
    assert marks.find_marked(MARK, job) == []
    assert marks.find_marked(MARK, "another workspace") != []
    stranger.kill()
    await stranger.wait()


@pytest.mark.anyio
async def test_a_run_ends_when_its_server_is_killed(job: str, tmp_path: Path) -> None:
    script = str(PLUGINS / "ignores_term.py")
    code = "asyncio.run(run(*sys.argv[1:]))"
    with in_another_process(code, job, str(tmp_path), sys.executable, script) as server:
        await until(lambda: len(marks.find_marked(MARK, job)) == 4)
        server.kill()
    await until(lambda: marks.find_marked(MARK, job) == [])


def test_a_process_is_found_by_its_mark_with_what_identifies_it() -> None:
    value = str(uuid.uuid4())
    with subprocess.Popen(["sleep", "3600"], env={**os.environ, MARK: value}) as child:
        found = marks.find_marked(MARK, value)
        assert [(marked.pid, marked.value) for marked in found] == [(child.pid, value)]
        assert found[0].create_time == psutil.Process(child.pid).create_time()
        assert found == [m for m in marks.find_marked(MARK) if m.value == value]
        assert marks.find_marked(MARK, value[:-1]) == []
        assert marks.find_marked(MARK[:-1]) == []
        child.kill()


@pytest.mark.anyio
async def test_a_mark_in_our_own_group_ends_that_process_and_not_us() -> None:
    value = str(uuid.uuid4())
    child = await sleeper(value, own_session=False)
    assert await kill.end_marked(MARK, value) == 1
    assert await child.wait() == -signal.SIGKILL


def test_orphans_that_are_ours_as_the_first_process_are_reaped(job: str, tmp_path: Path) -> None:
    code = """
        import ctypes, psutil
        assert ctypes.CDLL(None).prctl(36, 1) == 0  # PR_SET_CHILD_SUBREAPER: like PID 1
        end = asyncio.run(run(*sys.argv[1:]))
        print(end.code, [(child.pid, child.status()) for child in psutil.Process().children()])
    """
    script = str(PLUGINS / "leaves_children.py")
    with in_another_process(code, job, str(tmp_path), sys.executable, script) as server:
        assert server.communicate()[0] == "0 []\n"


@pytest.mark.anyio
async def test_no_descriptor_and_no_thread_is_left_by_runs(job: str, tmp_path: Path) -> None:
    await run(job, tmp_path, "true")
    us = psutil.Process()
    before = us.num_fds()
    for _ in range(20):
        await run(job, tmp_path, "true")
    assert us.num_fds() <= before
    await until(lambda: us.num_threads() < 20)


@pytest.mark.anyio
async def test_work_awaited_to_its_end_ends_before_the_cancel_is_raised() -> None:
    done = False

    async def work() -> None:
        nonlocal done
        await anyio.sleep(0.05)
        done = True

    task = asyncio.create_task(to_the_end(work()))
    await asyncio.sleep(0)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done


@pytest.mark.anyio
async def test_the_error_of_work_awaited_to_its_end_is_raised() -> None:
    async def work() -> None:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        await to_the_end(work())
