"""An upload is written to disk whole or not at all, in constant memory, as one copy."""

import errno
import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfms.api.multipart import receive_file
from pfms.errors import DiskFull, InvalidParameter, MissingFile, TooLarge
from pfms.storage.disk import reporting_full_disk
from pfms.storage.upload import Upload, UploadWriter
from tests.wire import BOUNDARY, form, part

pytestmark = pytest.mark.anyio


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def received(folder: Path, pieces: list[bytes], limit: int = 10_000) -> tuple[Upload, bytes]:
    """Receive a body that arrives in these pieces."""

    async def receive() -> dict[str, Any]:
        more = len(pieces) > 1
        return {
            "type": "http.request",
            "body": pieces.pop(0) if pieces else b"",
            "more_body": more,
        }

    request = Request({"type": "http", "headers": []}, receive)
    async with UploadWriter(folder / "upload", limit) as writer:
        upload = await receive_file(request, BOUNDARY.encode(), writer, 60)
        return upload, upload.path.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.binary(min_size=1, max_size=300)
    | st.text("\r\n-the-boundary", min_size=1, max_size=300).map(str.encode),
    cuts=st.lists(st.integers(0, 600), max_size=8),
)
async def test_however_a_body_is_split_the_same_file_is_written(
    tmp_path: Path, content: bytes, cuts: list[int]
) -> None:
    if f"\r\n--{BOUNDARY}".encode() in content:
        return
    body = form(part(b"more", 'form-data; name="other"'), part(content))
    ends = sorted({min(cut, len(body)) for cut in cuts} | {len(body)})
    pieces = [body[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    upload, written = await received(tmp_path, pieces)

    assert written == content
    assert upload.size == len(content)
    assert upload.sha256 == hashlib.sha256(content).hexdigest()
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", InvalidParameter),
        (form(), MissingFile),
        (form(part(b"x"), part(b"y")), InvalidParameter),
        (form(part(b"x"))[:-6], InvalidParameter),
        (form(part(b"x" * 10_001)), TooLarge),
        (form(part(b"x" * (1 << 21), 'form-data; name="other"'), part(b"x")), TooLarge),
    ],
)
async def test_a_refused_upload_leaves_nothing(
    tmp_path: Path, body: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await received(tmp_path, [body])

    assert left_in(tmp_path) == []


async def test_an_upload_that_was_moved_away_stays_where_it_was_moved(tmp_path: Path) -> None:
    async with UploadWriter(tmp_path / "upload", 100) as writer:
        await writer.feed(b"some ")
        await writer.feed(b"bytes")
        upload = await writer.finish()
        upload.path.rename(tmp_path / "kept")

    assert (tmp_path / "kept").read_bytes() == b"some bytes"
    assert left_in(tmp_path) == ["kept"]


async def test_a_full_disk_is_reported_during_the_upload_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "upload").symlink_to("/dev/full")
    writer = UploadWriter(tmp_path / "upload", 1 << 30)

    async def two_and_a_half_mebibytes() -> None:
        async with writer:
            for _ in range(40):
                await writer.feed(bytes(1 << 16))
            await writer.finish()

    with pytest.raises(DiskFull):
        await two_and_a_half_mebibytes()

    assert left_in(tmp_path) == []


def of_sqlite(statements: str) -> sqlite3.Error:
    """The error that SQLite raises for the last of these statements."""
    with closing(sqlite3.connect(":memory:")) as table:
        with pytest.raises(sqlite3.Error) as said:
            table.executescript(statements)
        return said.value


FULL = of_sqlite("PRAGMA max_page_count = 1; CREATE TABLE t (x); CREATE TABLE u (x)")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        FULL,
    ],
)
def test_every_error_for_a_full_disk_is_recognised(error: Exception) -> None:
    with pytest.raises(DiskFull), reporting_full_disk():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error", "/jobs/full/of/it"),
        of_sqlite("SELECT * FROM [database or disk is full]"),
        ValueError("the disk is full"),
    ],
)
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)), reporting_full_disk():
        raise error
