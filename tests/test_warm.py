"""A forked run is like a fresh process. What all executors share is in test_executors.py."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pfms.executors.fresh import FreshExecutor
from tests.house import House, a_house

pytestmark = pytest.mark.anyio


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with a_house(tmp_path) as house:
        yield house


ENDS = {
    "well": "print('done')",
    "code": "import sys; sys.exit(7)",
    "large code": "import sys; sys.exit(300)",
    "words": "import sys; sys.exit('it cannot be')",
    "none": "import sys; sys.exit(None)",
    "error": "def f():\n    raise ValueError('no')\nf()",
    "chained": "try:\n    1 / 0\nexcept Exception as e:\n    raise OSError('x') from e",
    "interrupt": "import os, signal; os.kill(os.getpid(), signal.SIGINT); input()",
    "at once": "import os; os._exit(9)",
    "abort": "import os; os.abort()",
    "syntax": "print('unclosed",
    "at exit": "import atexit; atexit.register(print, 'at exit'); print('first')",
    "thread": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\nprint('main')",
    "daemon": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(60), print('no')), daemon=True).start()",
    "C": "import ctypes; ctypes.CDLL(None).printf(b'from C')",
    "imports": "import nothing_of_that_name",
    "main": "import __main__, sys; print(__name__, __file__, vars(__main__)['__name__'])",
    "path": "import sys; print(sys.path[0], sys.argv)",
}


@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
async def test_a_script_ends_as_it_does_in_a_fresh_process(house: House, text: str) -> None:
    command = house.script(text)
    fresh = await house.run(FreshExecutor(), command)
    warm = await house.run(await house.warmed(command), command)
    assert (warm[0].code, warm[0].signal, warm[0].ended_by) == (
        fresh[0].code,
        fresh[0].signal,
        fresh[0].ended_by,
    )
    assert warm[1] == fresh[1]


@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
async def test_it_also_does_so_in_a_process_that_may_stay(house: House, text: str) -> None:
    command = house.script(text)
    fresh = await house.run(FreshExecutor(), command)
    executor = await house.warmed(command, runs_per_process=3)
    for _ in range(2):
        end, log = await house.run(executor, command)
        assert (end.code, end.signal, end.ended_by) == (
            fresh[0].code,
            fresh[0].signal,
            fresh[0].ended_by,
        )
        assert log == fresh[1]


async def test_a_run_has_the_environment_of_a_fresh_process(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_BOTH", "the server's")
    monkeypatch.setenv("PFMS_PORT", "1")
    command = house.script("import json, os; print(json.dumps(dict(os.environ)))")
    executor = await house.warmed(command, {"OF_THE_PARENT": "1", "OF_BOTH": "the parent's"})
    monkeypatch.setenv("SET_SINCE", "1")
    wanted = {"OF_THE_RUN": "ü=1\n2"}

    fresh = json.loads((await house.run(FreshExecutor(house.mark), command, wanted))[1])
    warm = json.loads((await house.run(executor, command, wanted))[1])

    assert warm.pop("PFMS_JOB") != fresh.pop("PFMS_JOB")
    assert warm == fresh
    assert (warm["OF_BOTH"], warm["OF_THE_RUN"]) == ("the server's", "ü=1\n2")


async def test_a_run_knows_nothing_of_the_one_before(house: House) -> None:
    command = house.script(
        "import json, os\nprint(getattr(json, 'seen', 'nothing'), os.environ.get('SEEN'))\n"
        "json.seen = os.environ['SEEN'] = 'something'"
    )
    executor = await house.warmed(command)
    for _ in range(2):
        assert (await house.run(executor, command))[1] == "nothing None\n"


async def test_the_parent_loads_what_a_script_imports_but_nothing_of_pfms(house: House) -> None:
    (house.folder / "colorsys.py").write_text("beside = True")
    command = house.script(
        "import sys\nbefore = set(sys.modules)\nimport wave, colorsys\n"
        "print('wave' in before, colorsys.beside)\n"
        "print([name for name in before if name.partition('.')[0] == 'pfms'])"
    )
    assert (await house.run(await house.warmed(command), command))[1] == "True True\n[]\n"


async def test_an_edited_script_is_run_in_its_new_form(house: House) -> None:
    command = house.script("print('old')")
    executor = await house.warmed(command)
    assert (await house.run(executor, command))[1] == "old\n"
    house.script("print('new')")
    assert (await house.run(executor, command))[1] == "new\n"
