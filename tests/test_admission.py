"""How an upload gets into the store, with fakes for the Python that has the plugin.

Each fake is a real program; the real child, on real weights, is in test_weights.py.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from pfms.errors import DiskFull, InvalidModelID, NotAModel, PfmsError
from pfms.models.store import ModelStore
from tests.conftest import until

# Stand-ins for `PYTHON weights_child.py UPLOAD TARGET`: sys.argv[1:] is what follows PYTHON.
TAKES_ALL = """
import hashlib, json, pathlib, sys
content = b"weights of " + pathlib.Path(sys.argv[2]).read_bytes()
pathlib.Path(sys.argv[3]).write_bytes(content)
print(json.dumps({"ok": True, "sha256": hashlib.sha256(content).hexdigest(),
                  "size": len(content), "warnings": ["it was half"]}))
"""
WRITES_THEN = "import os, pathlib, sys, signal\npathlib.Path(sys.argv[3]).write_bytes(b'half')\n"
REFUSES = WRITES_THEN + """print('{"ok": false, "code": "not-a-model", "detail": "Key a."}')"""
DISK_FULL = WRITES_THEN + """print('{"ok": false, "code": "disk-full", "detail": "Full."}')"""
NO_PLUGIN = """print('{"ok": false, "code": "no-plugin", "detail": "No plugin."}')"""
CRASHES = WRITES_THEN + "raise SystemExit(3)"
FAILS = "raise RuntimeError('no such thing in /srv/pfms/x')"
SAYS_NOTHING = WRITES_THEN
SAYS_NONSENSE = "print('[1, 2')"
FLOODS = "import sys\nsys.stderr.write('x' * 5_000_000)\n" + TAKES_ALL


def killed_by(number: int) -> str:
    return WRITES_THEN + f"os.kill(os.getpid(), {number})"


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def store_with(tmp_path: Path) -> Callable[..., ModelStore]:
    """A store whose Python runs a fake in place of the child program."""

    def build(fake: str, time_limit: float = 60) -> ModelStore:
        script = tmp_path / "fake.py"
        script.write_text(fake)
        return ModelStore(tmp_path / "models", (sys.executable, str(script)), time_limit=time_limit)

    return build


def upload_of(folder: Path, content: bytes = b"some bytes") -> Path:
    path = folder / "upload"
    path.write_bytes(content)
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.anyio
@pytest.mark.parametrize("fake", [TAKES_ALL, FLOODS])
async def test_an_upload_that_the_child_accepts_is_stored_as_the_child_wrote_it(
    fake: str, store_with: Callable[..., ModelStore], uploads: Path
) -> None:
    store = store_with(fake)

    record = await store.admit("my-training", upload_of(uploads), "f" * 64)

    assert record == store.get("my-training")
    assert (store.root / "my-training" / "model.pth").read_bytes() == b"weights of some bytes"
    assert record.sha256 == hashlib.sha256(b"weights of some bytes").hexdigest()
    assert (record.upload_sha256, record.size, record.source) == ("f" * 64, 21, "upload")
    assert record.warnings[0] == "it was half"
    assert "training" in record.warnings[1]
    assert files_in(uploads) == ["upload"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fake", "kind", "words"),
    [
        (REFUSES, NotAModel, "Key a."),
        (DISK_FULL, DiskFull, "Full."),
        (NO_PLUGIN, PfmsError, "No plugin."),
        (CRASHES, PfmsError, "with exit code 3"),
        (SAYS_NOTHING, PfmsError, "without an answer"),
        (SAYS_NONSENSE, PfmsError, "without an answer"),
        (killed_by(signal.SIGKILL), NotAModel, "more memory"),
        (killed_by(signal.SIGXCPU), NotAModel, "far longer"),
        (killed_by(signal.SIGSEGV), NotAModel, "damaged"),
        (killed_by(signal.SIGTERM), PfmsError, "without an answer, by SIGTERM"),
        (FAILS, PfmsError, "without an answer, with exit code 1: RuntimeError: no such thing in x"),
    ],
)
async def test_if_the_child_refuses_an_upload_nothing_is_stored_or_left_behind(
    fake: str,
    kind: type[PfmsError],
    words: str,
    store_with: Callable[..., ModelStore],
    uploads: Path,
) -> None:
    store = store_with(fake)
    weights = upload_of(uploads, b"the model of before")
    before = store.place("m", weights, sha256="1", upload_sha256="2", size=19, source="upload")

    with pytest.raises(PfmsError, match=words) as caught:
        await store.admit("m", upload_of(uploads), "f" * 64)

    assert type(caught.value) is kind
    if kind is PfmsError:
        assert "pfms doctor" in caught.value.remedy
    assert store.get("m") == before
    assert files_in(store.root) == ["m", "m/model.json", "m/model.pth"]
    assert files_in(uploads) == ["upload"]


@pytest.mark.anyio
async def test_a_missing_python_is_not_blamed_on_the_file(tmp_path: Path, uploads: Path) -> None:
    store = ModelStore(tmp_path / "models", str(tmp_path / "no-python"))

    with pytest.raises(PfmsError) as caught:
        await store.admit("m", upload_of(uploads), "f" * 64)

    assert caught.value.code == "internal"
    assert str(tmp_path) not in caught.value.detail + caught.value.remedy


@pytest.mark.anyio
async def test_a_bad_id_is_refused_before_the_child_is_started(
    store_with: Callable[..., ModelStore], uploads: Path
) -> None:
    store = store_with("import pathlib, sys\npathlib.Path(sys.argv[3] + 'started').touch()")

    with pytest.raises(InvalidModelID):
        await store.admit("../../x", upload_of(uploads), "f" * 64)

    assert files_in(uploads) == ["upload"]


# Both processes carry the upload's path in their command line, and never end.
HANGS = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[2]])
pathlib.Path(sys.argv[3]).write_bytes(b"half")
pathlib.Path(sys.argv[2] + ".started").touch()
time.sleep(600)
"""


def processes_of(folder: Path) -> list[str]:
    """The processes with a file in `folder` in their command lines, except zombies."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            if str(folder).encode() in entry.read_bytes():
                found.append(entry.parent.name)
    return found


@pytest.mark.anyio
async def test_a_child_that_hangs_is_ended_at_the_time_limit_with_everything_it_started(
    store_with: Callable[..., ModelStore], uploads: Path
) -> None:
    store = store_with(HANGS, time_limit=0.5)

    with pytest.raises(NotAModel, match=r"more than 0\.5 seconds"):
        await store.admit("m", upload_of(uploads), "f" * 64)

    await until(lambda: not processes_of(uploads))
    assert store.names() == []
    assert not [name for name in files_in(uploads) if name.endswith(".part")]


LEAVES_ONE = (
    "import subprocess, sys\n"
    + TAKES_ALL
    + """
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[2]],
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=%s)
"""
)


@pytest.mark.anyio
@pytest.mark.parametrize("own_session", [False, True])
@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "os.kill(os.getpid(), 11)"])
async def test_processes_that_a_child_leaves_behind_are_ended_however_the_child_ended(
    own_session: bool, end: str, store_with: Callable[..., ModelStore], uploads: Path
) -> None:
    store = store_with(LEAVES_ONE % own_session + f"import os\n{end}")

    with contextlib.suppress(PfmsError):
        await store.admit("m", upload_of(uploads), "f" * 64)

    assert processes_of(uploads) == []


@pytest.mark.anyio
async def test_when_the_client_leaves_the_child_is_ended_and_the_next_upload_is_served(
    store_with: Callable[..., ModelStore], uploads: Path
) -> None:
    store = store_with(HANGS)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.admit, "m", upload_of(uploads), "f" * 64)
        await until(lambda: "upload.started" in files_in(uploads))
        assert len(processes_of(uploads)) == 2
        tasks.cancel_scope.cancel()

    await until(lambda: not processes_of(uploads))
    assert files_in(uploads) == ["upload", "upload.started"]
    store_with(TAKES_ALL)  # overwrites the script that the same store runs
    assert (await store.admit("m", upload_of(uploads), "f" * 64)).model_id == "m"


@pytest.mark.anyio
async def test_the_child_gets_none_of_the_servers_secrets_and_no_gpu(
    store_with: Callable[..., ModelStore], uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFMS_TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("USER", raising=False)
    tell = "import json, os\nopen(sys.argv[2], 'w').write(json.dumps(dict(os.environ)))\n"
    store, upload = store_with("import sys\n" + tell + TAKES_ALL), upload_of(uploads)

    await store.admit("m", upload, "f" * 64)

    environment = json.loads(upload.read_text())
    assert "PFMS_TOKEN" not in environment
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["USER"] == "pfms"
    assert environment["PATH"] == os.environ["PATH"]
