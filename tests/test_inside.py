"""Below a folder that a program could write to: no link is followed, nothing is waited for."""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pfms.storage import inside
from pfms.storage.inside import NotAFile
from tests.test_files import as_nobody

KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda path: path.symlink_to(path.parent.parent / "outside"), "is a link"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "is a link"),
    "folder": (Path.mkdir, "is a folder"),
    "FIFO": (os.mkfifo, "is a FIFO"),
    "socket": (lambda path: bind(path), "is a socket"),
}


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(path.parent):
        listening.bind(path.name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a folder in it; beside it a file that must stay as it is."""
    (tmp_path / "outside").write_bytes(b"outside")
    (tmp_path / "root" / "inner").mkdir(parents=True)
    return tmp_path / "root"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "use",
    [
        lambda root: inside.open_file(root, "file"),
        lambda root: inside.open_or_make(root, "file"),
        lambda root: inside.link_or_copy(root, "file", root / "target"),
        lambda root: inside.sync(root, ["file"]),
    ],
    ids=["open", "make", "link", "sync"],
)
def test_what_is_no_regular_file_is_refused_by_name(
    root: Path, kind: str, use: Callable[[Path], object]
) -> None:
    make, words = KINDS[kind]
    make(root / "file")

    with pytest.raises(NotAFile, match=words) as caught:
        use(root)

    assert caught.value.filename == "file"
    assert not inside.is_file(root, "file")
    assert not os.path.lexists(root / "target")
    assert (root.parent / "outside").read_bytes() == b"outside"


def test_a_folder_on_the_way_that_is_a_link_is_refused(root: Path) -> None:
    (root / "inner" / "file").write_bytes(b"x")
    (root / "link").symlink_to("inner")
    (root.parent / "link").symlink_to("root")

    for place, name in ((root, "link/file"), (root.parent / "link", "inner/file")):
        with pytest.raises(NotAFile, match="link"):
            inside.open_file(place, name)
        with pytest.raises(NotAFile, match="link"), inside.writing(place, name):
            pass
    assert (root / "inner" / "file").read_bytes() == b"x"


def test_what_is_not_there_is_an_ordinary_error(root: Path) -> None:
    for name in ("nothing", "nothing/file", "inner/file"):
        with pytest.raises(FileNotFoundError) as caught:
            inside.open_file(root, name)
        assert not isinstance(caught.value, NotAFile)


def test_a_second_name_of_another_file_is_refused_on_demand(root: Path) -> None:
    (root / "file").hardlink_to(root.parent / "outside")

    with inside.open_file(root, "file") as file:
        assert file.read() == b"outside"
    with pytest.raises(NotAFile, match="hard link"):
        inside.open_file(root, "file", alone=True)
    with pytest.raises(NotAFile, match="hard link"):
        inside.open_or_make(root, "file")


@pytest.mark.parametrize("closed", ["file", "inner"])
def test_what_may_not_be_opened_is_refused(closed: str) -> None:
    with as_nobody() as place:
        folder = place / "inner"
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
        (folder / "file" if closed == "file" else folder).chmod(0)
        with pytest.raises(NotAFile, match="may not be opened"):
            inside.open_file(place, "inner/file")
        folder.chmod(0o700)


def test_a_file_is_written_anew_whatever_has_its_name(root: Path) -> None:
    for make in (
        KINDS["link"][0],
        os.mkfifo,
        lambda path: path.hardlink_to(root.parent / "outside"),
    ):
        make(root / "file")
        with inside.writing(root, "file") as file:
            file.write(b"new")
        assert (root / "file").read_bytes() == b"new"
        assert (root / "file").lstat().st_nlink == 1
        (root / "file").unlink()
    assert (root.parent / "outside").read_bytes() == b"outside"


def test_two_writers_do_not_disturb_each_other(root: Path) -> None:
    with inside.writing(root, "file") as one, inside.writing(root, "file") as other:
        one.write(b"one")
        other.write(b"other")
    assert (root / "file").read_bytes() == b"one"
    assert sorted(path.name for path in root.iterdir()) == ["file", "inner"]


def test_no_descriptor_is_left_open(root: Path) -> None:
    (root / "inner" / "link").symlink_to("nothing")
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for name in ("inner/link", "inner/nothing", "inner/link/file"):
        with contextlib.suppress(FileNotFoundError):
            inside.open_file(root, name)
        with contextlib.suppress(FileNotFoundError), inside.writing(root, f"{name}/x"):
            pass
    assert len(list(descriptors.iterdir())) == before
