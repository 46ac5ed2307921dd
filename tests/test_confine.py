"""What a run may take and leave: its log has a bound, nothing of it outlives it."""

import re
from pathlib import Path

import pytest

from pfms.processes.output import BoundedLog
from tests.conftest import StartServer, eventually

MOST = 64 << 10
NOTE = re.compile(rb"\n\[pfms left out (\d+) bytes here: PFMS_MAX_LOG_BYTES\]\n")


def lines(count: int) -> bytes:
    return b"".join(b"line %07d\n" % number for number in range(count))


# --- the log ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 5041, 5042, 20_000, 400_000])
@pytest.mark.parametrize("piece", [1000, 8192])
def test_a_log_keeps_its_head_and_tail_and_says_how_much_is_missing(
    tmp_path: Path, count: int, piece: int
) -> None:
    text, path = lines(count), tmp_path / "log"
    log = BoundedLog(path, MOST)
    for start in range(0, len(text), piece):
        log.write(text[start : start + piece])
        if start % 50_000 == 0:
            assert path.stat().st_size <= MOST
    log.close()

    kept = path.read_bytes()
    assert len(kept) <= MOST
    if len(text) <= MOST:
        assert kept == text
        return
    (missing,) = NOTE.findall(kept)
    head, _, tail = NOTE.split(kept)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) == MOST // 2
    assert len(tail) >= MOST // 4
    assert len(head) + int(missing) + len(tail) == len(text)


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"of someone else")
    (tmp_path / "log").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic link"):
        BoundedLog(tmp_path / "log", MOST)


@pytest.mark.parametrize("executor", ["fresh", "warm"])
def test_endless_output_costs_no_disk_and_can_be_followed(
    start_server: StartServer, executor: str
) -> None:
    server = start_server(
        "escaping/prints_without_end.py", executor=executor, max_log_bytes="64KiB"
    )
    job_id = server.submit()
    url = f"/jobs/{job_id}/log"
    eventually(lambda: b"left out" in server.http.get(url).content)
    log = server.http.get(url).content
    assert log.startswith(b"the first words\n")

    server.http.post(f"/jobs/{job_id}/cancel")
    assert server.ended(job_id)["state"] == "cancelled"
    log = server.http.get(url).content
    assert len(log) <= MOST
    assert log.startswith(b"the first words\n")
    assert len(NOTE.findall(log)) == 1
    assert log.rstrip().endswith(b"the last words")
