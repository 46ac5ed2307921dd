"""The descendants of a process, in real trees of processes."""

import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest

from pfms.processes.marks import JOB_MARK, find_marked
from pfms.processes.output import keeping_output
from pfms.processes.run import run_in_group

TREE = "(sleep 3600 & sleep 3600 & exec sleep 3600) & sleep 3600 & setsid sleep 3600 & wait"


def in_a_program(code: str) -> str:
    """What a program prints that has the module, trees of six processes, and this code."""
    prelude = f"""
        import os, subprocess, sys, threading, time
        from pfms.programs import family
        family.adopt_orphans()
        def grow(): subprocess.Popen(["sh", "-c", {TREE!r}])
        def wait_for(many):
            while len(family.descendants()) != many: time.sleep(0.01)
    """
    text = textwrap.dedent(prelude) + textwrap.dedent(code)
    return subprocess.check_output([sys.executable, "-c", text], text=True, timeout=60)


def test_the_kernels_lists_name_those_that_a_look_at_all_processes_finds() -> None:
    code = """
        one = threading.Thread(target=lambda: (grow(), time.sleep(3)))  # with children of its own
        one.start()
        grow()
        wait_for(12)
        below, known = family._all_children(), [os.getpid()]
        for pid in known:
            known += below.get(pid, [])
        print(sorted(known[1:]) == sorted(pid for pid, _ in family.descendants()))
        family.end_descendants(9)
        print(family.descendants())
        os._exit(0)
    """
    assert in_a_program(code) == "True\n[]\n"


def test_what_ends_while_we_look_is_waited_for_and_hides_nothing() -> None:
    code = """
        for _ in range(20):
            subprocess.Popen(["sh", "-c", "(sleep 3600 &) & exec true"])
        print(family.end_descendants(9), family.descendants())
    """
    assert in_a_program(code) == "True []\n"


def test_a_family_is_spared_with_all_below_it() -> None:
    code = """
        grow()
        wait_for(6)
        spared = family._children(os.getpid())
        print(family.end_descendants(9, but=spared), len(family.descendants()))
        print(family.end_leftovers(0), family.descendants())
    """
    assert in_a_program(code) == "True 6\nTrue []\n"


def test_to_look_costs_no_more_on_a_machine_with_many_processes() -> None:
    counts = Path("/proc/self/io")
    if not counts.exists() or "syscr" not in counts.read_text():
        pytest.skip("this kernel counts no reads")
    idle = [subprocess.Popen(["sleep", "3600"], start_new_session=True) for _ in range(30)]
    # In a program of its own: the tests' process has children, and threads that read.
    code = """
        def reads():
            with open("/proc/self/io") as io:
                return int(io.read().split("syscr: ")[1].split()[0])
        before = reads()
        assert family.descendants() == []
        print(reads() - before)
    """
    try:
        assert int(in_a_program(code)) < 10
    finally:
        for one in idle:
            one.kill()
            one.wait()


@pytest.mark.anyio
async def test_a_run_that_kills_its_keeper_leaves_no_process(tmp_path: Path) -> None:
    job = f"job-{uuid.uuid4()}"
    code = "import os, time; os.kill(os.getppid(), 9); time.sleep(3600)"
    async with keeping_output(tmp_path / "log", 1 << 20) as output:
        end = await run_in_group(
            [sys.executable, "-c", code],
            job=job,
            cwd=tmp_path,
            environment={},
            output=output,
            time_limit=60,
            grace=0.3,
        )
    assert end.signal == signal.SIGKILL
    assert find_marked(JOB_MARK, job) == []
