"""Several uploads of weights, whose checks take as long as the test wants them to."""

import asyncio
import sys
from pathlib import Path

import pytest

from pfms.models.store import ModelStore
from tests.conftest import until

pytestmark = pytest.mark.anyio

# In place of the child that opens weights: it begins, and ends once it is told to.
CHECK = """
import json, sys, time
from pathlib import Path
upload, target = Path(sys.argv[2]), Path(sys.argv[3])
Path(f"{upload}.begun").touch()
while not Path(f"{upload}.go").exists():
    time.sleep(0.01)
target.write_bytes(upload.read_bytes())
print(json.dumps({"ok": True, "sha256": upload.name, "size": 1, "warnings": []}))
"""


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    check = tmp_path / "check.py"
    check.write_text(CHECK)
    return ModelStore(tmp_path / "models", (sys.executable, str(check)))


def begin(store: ModelStore, model: str, name: str) -> asyncio.Task[object]:
    upload = store.root.parent / name
    upload.write_bytes(b"x")
    return asyncio.create_task(store.admit(model, upload, name))


def has_begun(store: ModelStore, name: str) -> bool:
    return (store.root.parent / f"{name}.begun").exists()


def let_end(store: ModelStore, *names: str) -> None:
    for name in names:
        (store.root.parent / f"{name}.go").touch()


async def test_an_upload_that_takes_long_holds_up_no_other(store: ModelStore) -> None:
    slow = begin(store, "slow", "a")
    await until(lambda: has_begun(store, "a"))
    let_end(store, "b")
    await begin(store, "other", "b")
    assert store.names() == ["other"]
    let_end(store, "a")
    await slow
    assert store.names() == ["other", "slow"]


async def test_at_most_three_are_checked_at_a_time(store: ModelStore) -> None:
    names = ("a", "b", "c", "d")
    tasks = [begin(store, name, name) for name in names]
    await until(lambda: sum(has_begun(store, name) for name in names) == 3)
    assert not has_begun(store, "d")
    let_end(store, "a")
    await until(lambda: has_begun(store, "d"))
    let_end(store, *names)
    await asyncio.gather(*tasks)
    assert store.names() == list(names)


async def test_of_two_uploads_of_one_model_the_later_one_stays(store: ModelStore) -> None:
    tasks = [begin(store, "demo", "first"), begin(store, "demo", "second")]
    await until(lambda: has_begun(store, "first"))
    let_end(store, "second")
    await begin_and_end(store, "other")
    assert not has_begun(store, "second")
    let_end(store, "first")
    await asyncio.gather(*tasks)
    assert store.get("demo").sha256 == "second"


async def begin_and_end(store: ModelStore, name: str) -> None:
    let_end(store, name)
    await begin(store, name, name)
