"""Jobs that are read and removed at once: what has begun is finished, what is gone stays gone."""

import asyncio
import gzip
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from pfms.jobs.holds import Holds
from tests.conftest import Server, StartServer, eventually, nifti_bytes
from tests.refused import check

# --- the lock ----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_readers_share_a_job_and_a_remover_has_it_alone() -> None:
    holds, order = Holds(), []

    async def read(name: str, go: asyncio.Event) -> None:
        async with holds.reading("job"):
            order.append(f"{name} reads")
            await go.wait()
        order.append(f"{name} is done")

    async def remove(name: str) -> None:
        async with holds.removing("job"):
            order.append(f"{name} removes")
            await asyncio.sleep(0)
            order.append(f"{name} has removed")

    first, second, later = asyncio.Event(), asyncio.Event(), asyncio.Event()
    later.set()
    async with asyncio.TaskGroup() as group:
        group.create_task(read("a", first))
        group.create_task(read("b", second))
        await asyncio.sleep(0)
        group.create_task(remove("x"))
        group.create_task(remove("y"))
        await asyncio.sleep(0)
        group.create_task(read("c", later))
        await asyncio.sleep(0)
        assert order == ["a reads", "b reads"]
        first.set()
        second.set()
    assert sorted(order[:4]) == ["a is done", "a reads", "b is done", "b reads"]
    assert order[4:] == [
        *("x removes", "x has removed", "y removes", "y has removed"),
        *("c reads", "c is done"),
    ]


@pytest.mark.anyio
async def test_a_cancelled_wait_does_not_block_the_others() -> None:
    holds = Holds()
    async with holds.reading("job"):
        waits = asyncio.create_task(holds.removing("job").__aenter__())
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.wait({waits})
        async with asyncio.timeout(5), holds.reading("job"):
            pass
    async with asyncio.timeout(5), holds.removing("job"):
        pass
    assert holds._holds == {}


# --- over HTTP ---------------------------------------------------------------------------------


def large(megabytes: int) -> bytes:
    """A volume whose bundle has about this size, since noise hardly compresses."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, megabytes << 19, dtype=np.int16)
    return nifti_bytes((128, 128, megabytes * 32), gzipped=False)[:352] + voxels.tobytes()


def test_a_download_that_has_begun_is_complete_even_if_its_job_is_removed(
    start_server: StartServer,
) -> None:
    server = start_server()
    content = large(8)
    job_id = server.ended(server.submit(content))["id"]
    with server.http.stream("GET", f"/jobs/{job_id}/bundle?voxels=true") as answer:
        chunks = answer.iter_raw(1 << 16)
        begun = next(chunks)
        assert server.http.delete(f"/jobs/{job_id}").status_code == 204
        check(server.http.get(f"/jobs/{job_id}/result"), 404, "job-not-found", server)
        assert server.job_folders() == server.uploads() == []
        whole = begun + b"".join(chunks)
    with zipfile.ZipFile(BytesIO(whole)) as bundle:
        volume = bundle.read(f"{job_id}/input/imagesTs/input.nii.gz")
    assert gzip.decompress(volume) == content


def test_few_bundles_are_made_at_once_and_none_leaves_anything_behind(
    start_server: StartServer,
) -> None:
    server = start_server()
    job_id = server.ended(server.submit(large(16)))["id"]
    most = 0
    with ThreadPoolExecutor(12) as threads:
        calls = [
            threads.submit(server.http.get, f"/jobs/{job_id}/bundle?voxels=true") for _ in range(12)
        ]
        while not all(call.done() for call in calls):
            most = max(most, len(server.uploads()))
    assert [call.result().status_code for call in calls] == [200] * 12
    assert 1 <= most <= 2
    assert server.uploads() == []


def test_a_job_that_is_removed_and_purged_at_once_does_not_come_back(
    start_server: StartServer,
) -> None:
    server = start_server()
    jobs = [server.ended(server.submit())["id"] for _ in range(8)]
    calls = [(job, query) for job in jobs for query in ("", "?purge=voxels", "", "?purge=voxels")]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda c: server.http.delete(f"/jobs/{c[0]}{c[1]}"), calls))
    assert {answer.status_code for answer in answers} == {204, 404}
    assert server.job_folders() == server.uploads() == []
    assert server.http.get("/jobs").json()["jobs"] == []
    server.stop()
    assert start_server().http.get("/jobs").json()["jobs"] == []


def test_a_damaged_result_is_an_error_and_not_a_200(
    start_server: StartServer,
) -> None:
    server = start_server()
    whole = server.ended(server.submit())["id"]
    file = server.workspace / "jobs" / whole / "result" / "segmentation.nii.gz"
    good = file.read_bytes()
    for damaged in (b"", good[:-1], good[:20] + b"\0" + good[21:], good + b"\0"):
        file.write_bytes(damaged)
        for path in ("result", "preview.png"):
            problem = check(server.http.get(f"/jobs/{whole}/{path}"), 500, "bad-result", server)
            assert "/rerun" in problem["remedy"]
    file.write_bytes(good)
    assert server.http.get(f"/jobs/{whole}/result").content == good


# --- housekeeping ------------------------------------------------------------------------------


@contextmanager
def immovable(folder: Path) -> Iterator[None]:
    """Make a folder a mount point, so that it can be neither renamed nor removed."""
    mount = ["mount", "--bind", str(folder), str(folder)]
    said = subprocess.run(mount, capture_output=True, text=True, check=False)
    if said.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {said.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    ("setting", "folder"), [("keep_volumes_hours", "input"), ("keep_records_days", ".")]
)
def test_a_job_that_cannot_be_tidied_does_not_keep_others_from_being_tidied(
    start_server: StartServer, setting: str, folder: str
) -> None:
    server = start_server()
    stuck, *others = [server.ended(server.submit())["id"] for _ in range(3)]
    server.stop()
    with immovable(server.workspace / "jobs" / stuck / folder):
        server = start_server(**{setting: 1e-9})
        jobs = server.workspace / "jobs"
        eventually(lambda: not any((jobs / job / "input").exists() for job in others))
        assert server.job(stuck)["purged_at"] is None
        server.stop()


# --- what a run starts with --------------------------------------------------------------------


def test_a_job_runs_only_with_the_weights_that_its_record_names(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py")
    running, waiting, bare = (server.submit() for _ in range(3))
    folder = server.workspace / "jobs" / waiting / "input"
    (folder / "model.pth").unlink()
    (folder / "model.pth").write_bytes(b"others")
    shutil.rmtree(server.workspace / "jobs" / bare / "input")
    server.http.post(f"/jobs/{running}/cancel")
    assert "accepted with" in failure(server, waiting)
    assert "no longer in its folder" in failure(server, bare)


def failure(server: Server, job_id: str) -> str:
    job = server.ended(job_id)
    assert (job["state"], job["error"]["code"]) == ("failed", "plugin-failed")
    detail: str = job["error"]["detail"]
    return detail
