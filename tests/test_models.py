"""The store by itself; test_admission.py tests how an upload gets into it."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pfms.errors import InvalidModelID, ModelNotFound
from pfms.models.record import ModelRecord, valid_model_id
from pfms.models.store import ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", sys.executable)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def placed(store: ModelStore, name: str, content: bytes = b"weights") -> ModelRecord:
    weights = store.root.parent / f"{threading.get_ident()}.weights"
    weights.write_bytes(content)
    return store.place(
        name,
        weights,
        sha256=sha256(content),
        upload_sha256="0" * 64,
        size=len(content),
        source="upload",
    )


def files_of(store: ModelStore) -> list[str]:
    return sorted(str(p.relative_to(store.root)) for p in store.root.rglob("*"))


@pytest.mark.parametrize("text", ["a", "0", "spleen-v1.2_b", "A" * 128, "a..b", "training"])
def test_a_model_id_is_a_plain_name(text: str) -> None:
    assert valid_model_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "..", ".a", "-a", "_a", "a/b", "../../x", "/a", "a\\b", "a b"),
        *("a\n", "\na", "a\0", "é", "a\u0661", "A" * 129, "A" * 10_000, "\0" * 10_000),
    ],
)
def test_what_could_leave_the_folder_is_not_a_model_id_and_is_not_echoed_in_full(
    text: str, store: ModelStore
) -> None:
    for call in (valid_model_id, store.get, store.remove):
        with pytest.raises(InvalidModelID) as caught:
            call(text)
        assert len(caught.value.detail) < 300
        assert caught.value.detail.isprintable()
    with pytest.raises(InvalidModelID):
        placed(store, text)
    assert not store.root.exists()


def test_a_stored_model_is_listed_and_its_record_comes_back_the_same(store: ModelStore) -> None:
    assert store.names() == []
    second, first = placed(store, "b"), placed(store, "a.1")

    assert store.names() == ["a.1", "b"]
    assert (store.get("a.1"), store.get("b")) == (first, second)
    assert ModelRecord.from_json(json.loads(json.dumps(first.to_json()))) == first
    assert first.to_dict()["modelID"] == "a.1"
    assert files_of(store) == [
        *("a.1", "a.1/model.json", "a.1/model.pth"),
        *("b", "b/model.json", "b/model.pth"),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [("my-training", ["training"]), ("inference.training", ["training", "inference"]), ("T", [])],
)
def test_an_id_that_the_remote_mode_would_misread_gets_a_warning(
    name: str, words: list[str], store: ModelStore
) -> None:
    warnings = placed(store, name).warnings

    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


def test_a_job_keeps_the_model_that_it_was_given(store: ModelStore, tmp_path: Path) -> None:
    old = placed(store, "m", b"old")
    assert store.link_into("m", tmp_path / "job.pth") == old
    assert (tmp_path / "job.pth").samefile(store.root / "m" / "model.pth")

    new = placed(store, "m", b"new")
    assert (store.get("m"), new.sha256) == (new, sha256(b"new"))
    assert (tmp_path / "job.pth").read_bytes() == b"old"

    store.remove("m")
    assert (tmp_path / "job.pth").read_bytes() == b"old"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        yield Path(folder)


def test_on_another_file_system_a_job_gets_a_copy(
    store: ModelStore, tmp_path: Path, elsewhere: Path
) -> None:
    record = placed(store, "m")

    assert store.link_into("m", elsewhere / "job.pth") == record
    assert (elsewhere / "job.pth").read_bytes() == b"weights"
    assert mode_of(elsewhere / "job.pth") == 0o440
    assert [path.name for path in elsewhere.iterdir()] == ["job.pth"]


def test_weights_from_another_file_system_are_moved_too(tmp_path: Path, elsewhere: Path) -> None:
    store = ModelStore(tmp_path / "models", sys.executable)
    (elsewhere / "w").write_bytes(b"weights")

    store.place("m", elsewhere / "w", sha256="1", upload_sha256="2", size=7, source="demo")

    assert (store.root / "m" / "model.pth").read_bytes() == b"weights"
    assert mode_of(store.root / "m" / "model.pth") == 0o440
    assert list(elsewhere.iterdir()) == []
    assert files_of(store) == ["m", "m/model.json", "m/model.pth"]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_group_can_replace_a_model_but_nobody_can_write_to_its_file(
    store: ModelStore, tmp_path: Path
) -> None:
    before = os.umask(0o002)
    try:
        placed(store, "m")
    finally:
        os.umask(before)

    store.link_into("m", tmp_path / "job.pth")

    for path in (store.root / "m", store.root / "m" / "model.json"):
        assert path.stat().st_mode & stat.S_IWGRP
    for path in (store.root / "m" / "model.pth", tmp_path / "job.pth"):
        assert mode_of(path) == 0o440


def test_a_start_makes_an_older_stores_files_and_its_jobs_links_read_only(
    store: ModelStore, tmp_path: Path
) -> None:
    record = placed(store, "m")
    file = store.root / "m" / "model.pth"
    file.chmod(0o660)
    (tmp_path / "job.pth").hardlink_to(file)

    store.recover()

    assert store.get("m") == record
    assert (mode_of(file), mode_of(tmp_path / "job.pth")) == (0o440, 0o440)
    placed(store, "m", b"new")
    store.remove("m")
    assert (tmp_path / "job.pth").read_bytes() == b"weights"


@pytest.mark.parametrize("by_hand", ["writable", "a link"])
def test_if_a_models_file_can_change_a_job_gets_a_copy_that_cannot(
    store: ModelStore, tmp_path: Path, by_hand: str
) -> None:
    placed(store, "m")
    file = store.root / "m" / "model.pth"
    if by_hand == "a link":
        file.rename(tmp_path / "elsewhere.pth")
        (tmp_path / "elsewhere.pth").chmod(0o660)
        file.symlink_to(tmp_path / "elsewhere.pth")
        store.recover()
        assert mode_of(tmp_path / "elsewhere.pth") == 0o660
    else:
        file.chmod(0o660)  # as if it had another owner

    store.link_into("m", tmp_path / "job.pth")
    file.write_bytes(b"changed")

    assert (tmp_path / "job.pth").read_bytes() == b"weights"
    assert mode_of(tmp_path / "job.pth") == 0o440


def test_unknown_fields_in_a_record_survive_and_hide_no_model(
    store: ModelStore,
) -> None:
    for name in ("more", "less", "strange"):
        placed(store, name)
    newer = {"signed_by": {"name": "x"}, "schema": 9}
    record = store.root / "more" / "model.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | newer))
    few = {"sha256": sha256(b"weights"), "size": 7, "schema": 9, "warnings": {"a": 1}}
    (store.root / "less" / "model.json").write_text(json.dumps(few))
    (store.root / "strange" / "model.json").write_text(json.dumps(newer))

    assert store.names() == ["less", "more"]
    (store.root / "more").rename(store.root / "renamed")
    later = record.parent.with_name("renamed") / "model.pth"
    os.utime(later, ns=(later.stat().st_mtime_ns + 10**10,) * 2)  # it has to be checked again
    store.recover()

    assert store.names() == ["less", "renamed", "strange"]
    assert store.get("less").sha256 == sha256(b"weights")
    assert store.get("strange").source == "found"
    for name in ("renamed", "strange"):
        kept = json.loads((store.root / name / "model.json").read_text())
        assert newer.items() <= kept.items()
        assert kept["modelID"] == name
        assert not newer.keys() & store.get(name).to_dict().keys()


def test_a_removed_model_is_gone_completely(store: ModelStore) -> None:
    placed(store, "m")
    store.remove("m")

    assert (store.names(), files_of(store)) == ([], [])
    with pytest.raises(ModelNotFound):
        store.remove("m")


def test_what_is_not_there_is_not_found(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="'no-such'"):
        store.get("no-such")
    with pytest.raises(ModelNotFound):
        store.link_into("no-such", tmp_path / "job.pth")
    assert not (tmp_path / "job.pth").exists()


def test_folders_without_weights_or_record_and_other_files_are_not_models(
    store: ModelStore,
) -> None:
    placed(store, "good")
    for name in ("empty", "no-record", "no-weights", "bad-record", ".hidden"):
        (store.root / name).mkdir()
    (store.root / "no-record" / "model.pth").write_bytes(b"w")
    (store.root / "no-weights" / "model.json").write_text("{}")
    (store.root / "bad-record" / "model.pth").write_bytes(b"w")
    (store.root / "bad-record" / "model.json").write_text('["modelID"]')
    (store.root / "README").write_text("mine")

    assert store.names() == ["good"]
    with pytest.raises(ModelNotFound):
        store.get("bad-record")


def test_weights_that_cannot_be_moved_in_leave_no_folder(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.place("m", tmp_path / "no", sha256="", upload_sha256="", size=0, source="upload")
    assert files_of(store) == []


def test_a_job_never_gets_weights_with_the_record_of_others(
    store: ModelStore, tmp_path: Path
) -> None:
    contents = [bytes([n]) * 100_000 for n in range(8)]
    placed(store, "m", contents[0])

    def replace_it() -> None:
        for content in contents * 3:
            placed(store, "m", content)

    writers = [threading.Thread(target=replace_it) for _ in range(2)]
    for writer in writers:
        writer.start()
    count = 0
    while any(writer.is_alive() for writer in writers) or count < 10:
        count += 1
        record = store.link_into("m", tmp_path / f"job{count}")
        assert sha256((tmp_path / f"job{count}").read_bytes()) == record.sha256
    for writer in writers:
        writer.join()

    assert files_of(store) == ["m", "m/model.json", "m/model.pth"]


def test_a_start_finishes_a_replacement_that_a_crash_interrupted(store: ModelStore) -> None:
    old = placed(store, "m", b"old")
    folder = store.root / "m"
    new = replace(old, sha256=sha256(b"new"), upload_sha256="1" * 64, uploaded_at="2030")
    (folder / "model.json.part").write_text(json.dumps(new.to_dict()))
    (folder / "model.pth").unlink()
    (folder / "model.pth").write_bytes(b"new")

    store.recover()

    assert store.get("m") == new
    assert files_of(store) == ["m", "m/model.json", "m/model.pth"]


def test_a_start_undoes_a_replacement_that_was_not_yet_visible(store: ModelStore) -> None:
    old = placed(store, "m", b"old")
    folder = store.root / "m"
    new = replace(old, sha256=sha256(b"new"))
    (folder / "model.json.part").write_text(json.dumps(new.to_dict()))
    (folder / "model.pth.part").write_bytes(b"new")
    (store.root / "first-time").mkdir()
    (store.root / "first-time" / "model.pth.part").write_bytes(b"ne")
    (store.root / ".removed-0").mkdir()
    (store.root / ".removed-0" / "model.pth").write_bytes(b"gone")
    (store.root / "README").write_text("mine")

    store.recover()

    assert store.get("m") == old
    assert files_of(store) == ["README", "m", "m/model.json", "m/model.pth"]


def test_weights_put_in_by_hand_get_a_record_that_says_so(store: ModelStore) -> None:
    (store.root / "by-hand").mkdir(parents=True)
    (store.root / "by-hand" / "model.pth").write_bytes(b"mine")
    old = placed(store, "replaced", b"old")
    (store.root / "replaced" / "model.pth").write_bytes(b"by hand")
    kept = placed(store, "copied", b"same")
    later = (store.root / "copied" / "model.json").stat().st_mtime_ns + 10**9
    os.utime(store.root / "copied" / "model.pth", ns=(later, later))
    (store.root / "copied").rename(store.root / "renamed")

    store.recover()

    by_hand = store.get("by-hand")
    assert (by_hand.source, by_hand.sha256, by_hand.size) == ("found", sha256(b"mine"), 4)
    assert "never checked" in by_hand.warnings[0]
    assert (old.source, store.get("replaced").source) == ("upload", "found")
    assert store.get("replaced").sha256 == sha256(b"by hand")
    assert store.get("renamed") == replace(kept, model_id="renamed")


PLACES = """
import hashlib, pathlib, sys
from pfms.models.store import ModelStore
root = pathlib.Path(sys.argv[1])
store = ModelStore(root / "models", sys.executable)
for turn in range(10**6):
    content = bytes([turn % 251]) * 1000
    (root / "w").write_bytes(content)
    store.place("m", root / "w", sha256=hashlib.sha256(content).hexdigest(),
                upload_sha256=str(turn), size=1000, source="upload")
    print(turn, flush=True)
"""


@pytest.mark.parametrize("turns", [1, 2, 5, 9, 14])
def test_after_a_kill_each_file_has_its_own_record_and_no_acknowledged_model_is_lost(
    turns: int, store: ModelStore, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PLACES, str(tmp_path)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        for _ in range(turns):
            child.stdout.readline()
        child.kill()
        told = [*range(turns), *map(int, child.stdout.read().split())][-1]

    store.recover()

    record = store.get("m")
    assert sha256((store.root / "m" / "model.pth").read_bytes()) == record.sha256
    assert int(record.upload_sha256) in (told, told + 1)
    assert files_of(store) == ["m", "m/model.json", "m/model.pth"]
