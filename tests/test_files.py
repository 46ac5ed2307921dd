"""Files are written whole and durably, checked, and removed whatever a plugin did to them."""

import contextlib
import hashlib
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pfms.storage.files import matches, write_atomically, writing_atomically
from pfms.storage.removal import discard
from pfms.storage.workspace import JobTree, Workspace
from tests.conftest import Server, StartServer

NOBODY = 65534


@contextlib.contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder, and only its owner's rights: root would not need them."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def make_deep(folder: Path, depth: int) -> None:
    """Nested folders, each with a name of 255 bytes and a file in it."""
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("n" * 255, dir_fd=fd)
        inner = os.open("n" * 255, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


# --- removal ---------------------------------------------------------------------------------


def test_a_folder_of_any_depth_is_removed(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", 1500)
    discard(tmp_path / "deep")
    assert list(tmp_path.iterdir()) == []


def test_removing_a_deep_and_wide_folder_takes_few_descriptors(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    make_deep(deep, 300)
    for number in range(300):
        (deep / f"wide-{number}" / "inner").mkdir(parents=True)
    program = (
        "import pathlib, resource, sys; from pfms.storage.removal import discard;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6)); discard(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([shutil.which("python3") or "python3", "-c", program, deep], check=True)
    assert not deep.exists()


def test_links_are_removed_and_their_targets_stay(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    (tmp_path / "kept" / "closed").mkdir(mode=0o500)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "to-folder").symlink_to(tmp_path / "kept")
    (folder / "to-closed").symlink_to(tmp_path / "kept" / "closed")
    (folder / "to-file").symlink_to(tmp_path / "kept" / "file")
    (folder / "to-nothing").symlink_to("nothing")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    discard(folder)
    discard(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").read_text() == "kept"
    assert (tmp_path / "kept" / "closed").stat().st_mode & 0o777 == 0o500


def test_special_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(folder):
        listening.bind("socket")
    os.close(os.open(os.fsencode(folder) + b"/\xff\n", os.O_CREAT))
    discard(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o000, 0o100, 0o300, 0o500])
def test_a_folder_that_its_owner_cannot_enter_is_removed(mode: int) -> None:
    with as_nobody() as place:
        folder = place / "folder"
        (folder / "inner" / "inmost").mkdir(parents=True)
        (folder / "inner" / "inmost" / "file").write_text("x")
        (folder / "inner" / "file").write_text("x")
        for each in (folder / "inner" / "inmost", folder / "inner", folder):
            each.chmod(mode)
        discard(folder)
        assert list(place.iterdir()) == []


def test_files_written_during_a_removal_are_removed_too(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    make_deep(folder, 500)
    stopped = threading.Event()

    def write() -> None:
        for number in itertools.count():
            try:
                (folder / f"new-{number}").mkdir()
                (folder / f"new-{number}" / "file").touch()
            except OSError:  # the removal was quicker
                if not folder.exists():
                    return
            if stopped.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with contextlib.suppress(OSError):  # it may fail with an error, but must not silently stop
            discard(folder)
    finally:
        stopped.set()
        writer.join()
    discard(folder)
    assert not folder.exists()


def test_what_cannot_be_removed_is_an_error() -> None:
    with as_nobody() as place:
        if os.getuid() != 0:
            pytest.skip("only root can make a folder that another user cannot remove")
        (place / "folder").mkdir()
        os.seteuid(0)
        (place / "folder" / "of-root").mkdir()
        (place / "folder" / "of-root" / "file").touch()
        os.seteuid(NOBODY)
        with pytest.raises(PermissionError):
            discard(place / "folder")
        assert (place / "folder" / "of-root" / "file").exists()


def test_removing_what_does_not_exist_is_not_an_error(tmp_path: Path) -> None:
    discard(tmp_path / "nothing")


def a_job_with_a_file_that_stays(place: Path) -> JobTree:
    tree = JobTree(place / "job")
    tree.lay_out()
    tree.output.mkdir()
    os.seteuid(0)
    (tree.output / "of-root").mkdir()
    (tree.output / "of-root" / "file").touch()
    os.seteuid(NOBODY)
    return tree


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file that another cannot remove")
def test_what_cannot_be_removed_fails_a_purge_and_a_new_attempt_but_not_freeing_space() -> None:
    with as_nobody() as place:
        tree = a_job_with_a_file_that_stays(place)
        with pytest.raises(PermissionError):
            tree.clear_voxels()
        with pytest.raises(PermissionError):
            tree.clear_run()
        tree.clear_output()
        assert (tree.output / "of-root" / "file").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file that another cannot remove")
def test_a_job_that_was_only_partly_removed_is_removed_by_the_next_call() -> None:
    job_id = "2026-01-01-00-00-00-00000000-0000-4000-8000-000000000001"
    with as_nobody() as place:
        workspace = Workspace(place / "workspace")
        workspace.make()
        tree = a_job_with_a_file_that_stays(place)
        tree.root.rename(workspace.job(job_id).root)
        for _ in range(2):
            with pytest.raises(PermissionError):
                workspace.remove_job(job_id)
        workspace.open()  # it must not stop the start
        workspace.close()
        os.seteuid(0)
        workspace.remove_job(job_id)
        os.seteuid(NOBODY)
        assert [*workspace.jobs.iterdir(), *workspace.uploads.iterdir()] == []


@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_job_whose_folder_is_inaccessible_is_purged_and_removed(mode: int) -> None:
    job_id = "2026-01-01-00-00-00-00000000-0000-4000-8000-000000000001"
    with as_nobody() as place:
        workspace = Workspace(place / "workspace")
        workspace.make()
        tree = workspace.job(job_id)
        tree.lay_out()
        tree.log.touch()
        tree.root.chmod(mode)
        tree.clear_voxels()
        assert list(tree.root.iterdir()) == [tree.log]
        tree.root.chmod(mode)
        workspace.remove_job(job_id)
        assert [*workspace.jobs.iterdir(), *workspace.uploads.iterdir()] == []


def a_job_in_a_maze(server: Server) -> Path:
    job_id = server.submit()
    assert server.ended(job_id)["state"] == "succeeded", server.job(job_id)
    return server.workspace / "jobs" / job_id


def test_a_job_whose_plugin_left_a_maze_is_removed(start_server: StartServer) -> None:
    server = start_server("makes_a_maze.py")
    folder = a_job_in_a_maze(server)
    answer = server.http.delete(f"/jobs/{folder.name}")
    assert answer.status_code == 204, answer.text
    assert server.job_folders() == []
    assert server.uploads() == []


def test_a_job_whose_plugin_left_a_maze_is_purged_completely(start_server: StartServer) -> None:
    server = start_server("makes_a_maze.py")
    folder = a_job_in_a_maze(server)
    answer = server.http.delete(f"/jobs/{folder.name}?purge=voxels")
    assert answer.status_code == 204, answer.text
    assert {path.name for path in folder.iterdir()} == {"command.sh", "job.json", "plugin.log"}
    assert server.job(folder.name)["purged_at"]


def test_a_maze_that_an_earlier_server_was_removing_is_removed_at_the_start(
    start_server: StartServer,
) -> None:
    server = start_server()
    server.stop()
    make_deep(server.workspace / "uploads" / ("a" * 32), 1500)
    assert start_server().uploads() == []


# --- content ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "same"),
    [(b"voxels", True), (b"voxel", False), (b"voxelS", False), (b"voxels!", False), (b"", False)],
)
def test_a_file_is_recognised_by_its_size_and_checksum(
    tmp_path: Path, content: bytes, same: bool
) -> None:
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        file.read(3)
        assert matches(file, 6, hashlib.sha256(b"voxels").hexdigest()) is same
        assert not same or file.read() == content


def test_the_record_has_size_and_checksum_of_each_resultant(server: Server) -> None:
    for resultant, others in (("labels", {"onehot"}), ("logits", {"onehot", "logits"})):
        job = server.ended(server.submit(params={"resultant": resultant}))
        facts = {"labels": job["segmentation"], **job["segmentation"]["files"]}
        assert set(facts) == {"labels", *others}
        for name, recorded in facts.items():
            content = server.http.get(f"/jobs/{job['id']}/result?resultant={name}").content
            assert recorded["size"] == len(content)
            assert recorded["sha256"] == hashlib.sha256(content).hexdigest()


# --- writing ---------------------------------------------------------------------------------


def test_a_file_that_was_not_written_completely_does_not_replace_the_old_one(
    tmp_path: Path,
) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"before")

    def fail() -> None:
        with writing_atomically(target) as part:
            part.write(b"half")
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]
