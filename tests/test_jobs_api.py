"""The calls about jobs, over HTTP, on fake plugins."""

import gzip
import io
import json
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pfms.jobs.job import ENDED
from tests.conftest import Server, StartServer, eventually, nifti_bytes

ASYNC = {"Prefer": "respond-async"}


def submit(server: Server, **request: Any) -> str:
    answer = server.infer(headers={**ASYNC, **request.pop("headers", {})}, **request)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def show(server: Server, job_id: str) -> dict[str, Any]:
    answer = server.http.get(f"/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def events_of(server: Server, job_id: str, last: str = "") -> Iterator[dict[str, Any]]:
    """The job's events as they come, until the stream ends."""
    headers = {"Last-Event-ID": last} if last else {}
    with server.http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        event: dict[str, Any] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if not line and event:
                yield event
                event = {}
            elif name == "id":
                event["n"] = value
            elif name == "event":
                event["event"] = value
            elif name == "data":
                event |= json.loads(value)


def until(server: Server, job_id: str, *states: str) -> dict[str, Any]:
    """The job once it is in one of `states`: told by its events, never by the clock."""
    while (job := show(server, job_id))["state"] not in states:
        for event in events_of(server, job_id):
            if event["state"] in states:
                break
    return job


def ended(server: Server, job_id: str) -> dict[str, Any]:
    return until(server, job_id, *ENDED)


@pytest.fixture(scope="module")
def done(server: Server) -> dict[str, Any]:
    """A job that has succeeded."""
    return ended(server, submit(server))


# --- Prefer --------------------------------------------------------------------------------


def test_respond_async_is_answered_at_once_with_the_job(server: Server) -> None:
    answer = server.infer(headers=ASYNC)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["Location"] == f"/api/v1/jobs/{job['id']}"
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert answer.headers["X-Pfms-Job"] == job["id"]
    assert job["state"] in ("queued", "running")
    assert ended(server, job["id"])["state"] == "succeeded"


def test_wait_is_200_when_the_job_is_done_in_time(server: Server) -> None:
    answer = server.infer(headers={"Prefer": "wait=30"})
    assert answer.status_code == 200
    assert answer.content[:2] == b"\x1f\x8b"


def test_wait_is_202_when_it_is_not_and_the_job_runs_on(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    answer = server.infer(headers={"Prefer": "respond-async, wait=1"})
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "wait=1"
    assert show(server, answer.json()["id"])["state"] == "running"


@pytest.mark.parametrize("prefer", ["", "handling=lenient", "wait=soon", "wait"])
def test_a_preference_that_is_none_of_ours_blocks_as_ever(server: Server, prefer: str) -> None:
    answer = server.infer(headers={"Prefer": prefer})
    assert answer.status_code == 200
    assert "Preference-Applied" not in answer.headers


def test_the_preferences_of_all_lines_count(server: Server) -> None:
    for lines in (["handling=lenient", "respond-async"], ["respond-async", "handling=lenient"]):
        answer = server.infer(headers=[("Prefer", line) for line in lines])
        assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "respond-async")


# --- Idempotency-Key -----------------------------------------------------------------------


@pytest.mark.parametrize("again", ["key-1", '"key-1"'])
def test_a_repeated_key_is_answered_by_the_first_job(start_server: StartServer, again: str) -> None:
    server = start_server()
    first = server.infer(headers={"Idempotency-Key": "key-1"})
    second = server.infer(headers={"Idempotency-Key": again})
    assert first.status_code == second.status_code == 200
    assert first.headers["X-Pfms-Job"] == second.headers["X-Pfms-Job"]
    assert first.content == second.content
    assert len(server.job_folders()) == 1


def test_requests_of_one_key_at_the_same_time_make_one_job(start_server: StartServer) -> None:
    server = start_server("slow.py")
    with ThreadPoolExecutor(8) as pool:
        send = [pool.submit(server.infer, headers={"Idempotency-Key": "k"}) for _ in range(8)]
        answers = [one.result() for one in send]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["X-Pfms-Job"] for answer in answers}) == 1
    assert len(server.job_folders()) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"content": nifti_bytes(seed=1)},
        {"params": {"resultant": "onehot"}},
    ],
)
def test_a_key_with_other_content_is_refused(server: Server, other: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": f"other-{sorted(other)}"}
    assert server.infer(headers=headers).status_code == 200
    answer = server.infer(headers=headers, **other)
    assert answer.status_code == 422
    assert answer.json()["code"] == "idempotency-mismatch"


def test_a_failed_job_keeps_its_key_and_a_cancelled_one_gives_it_back(
    start_server: StartServer,
) -> None:
    server = start_server("exit3.py")
    headers = {"Idempotency-Key": "k"}
    first = server.infer(headers=headers)
    assert first.status_code == 500
    assert server.infer(headers=headers).headers["X-Pfms-Job"] == first.headers["X-Pfms-Job"]
    server.stop()

    server = start_server("hangs.py")
    job_id = submit(server, headers={"Idempotency-Key": "other"})
    server.http.post(f"/jobs/{job_id}/cancel")
    assert ended(server, job_id)["state"] == "cancelled"
    assert submit(server, headers={"Idempotency-Key": "other"}) != job_id


def test_keys_hold_across_a_restart(start_server: StartServer) -> None:
    server = start_server()
    first = server.infer(headers={"Idempotency-Key": "k"})
    server.stop()
    again = start_server().infer(headers={"Idempotency-Key": "k"})
    assert again.headers["X-Pfms-Job"] == first.headers["X-Pfms-Job"]


def test_a_repeat_joins_its_job_whatever_has_become_of_room_and_model(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", queue_limit=1)
    until(server, submit(server), "running")
    headers = {"Idempotency-Key": "k"}
    job_id = submit(server, headers=headers)
    assert server.infer(headers={"Prefer": "respond-async"}).json()["code"] == "queue-full"
    assert submit(server, headers=headers) == job_id
    assert server.http.delete("/spleenseg/modelpth/demo").status_code == 204
    assert submit(server, headers=headers) == job_id


@pytest.mark.parametrize("key", ["", '""', "x" * 300])
def test_a_key_that_is_none_is_refused(server: Server, key: str) -> None:
    answer = server.infer(headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-parameter")


# --- show and list -------------------------------------------------------------------------


def test_a_job_says_all_that_the_contract_promises(done: dict[str, Any]) -> None:
    assert done["chris_status"] == "finishedSuccessfully"
    assert done["volume"]["shape"] == [24, 20, 24]
    assert done["volume"]["spacing"] == [3.0, 3.0, 3.0]
    assert done["volume"]["orientation"] == "RAS"
    assert len(done["volume"]["sha256"]) == 64
    assert done["model"]["modelID"] == "demo"
    assert done["device"] == "cpu"
    assert done["command"][-2:] == ["input", "output"]
    assert done["created_at"] <= done["started_at"] <= done["ended_at"]
    assert done["progress"] == {**done["progress"], "stage": "ended", "fraction": 1.0}
    assert done["error"] is None


def test_no_path_of_the_server_is_shown(server: Server, done: dict[str, Any]) -> None:
    text = server.http.get(f"/jobs/{done['id']}").text
    assert str(server.workspace) not in text
    assert str(Path(__file__).parent) not in text


def test_waiting_jobs_know_their_place_and_start(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    running, second, third = (submit(server) for _ in range(3))
    until(server, running, "running")
    places = [show(server, job_id)["place"] for job_id in (running, second, third)]
    assert places == [None, 0, 1]
    starts = [show(server, job_id)["estimated_start"] for job_id in (second, third)]
    assert starts[0] < starts[1]
    assert show(server, second)["progress"]["stage"] == "waiting"
    assert show(server, second)["chris_status"] == "notStarted"


def test_the_list_is_filtered_and_paged(start_server: StartServer) -> None:
    server = start_server()
    made = [ended(server, submit(server))["id"] for _ in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2, "state": "succeeded", "modelID": "demo"}
    while True:
        page = server.http.get("/jobs", params=query).json()
        seen += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
    assert seen == made[::-1]
    assert server.http.get("/jobs", params={"state": "failed"}).json()["jobs"] == []
    assert server.http.get("/jobs", params={"modelID": "nobody"}).json()["jobs"] == []
    other = ended(server, submit(server, content=nifti_bytes((20, 20, 20))))
    same = {"volume": other["volume"]["sha256"]}
    listed = server.http.get("/jobs", params=same).json()["jobs"]
    assert [job["id"] for job in listed] == [other["id"]]


@pytest.mark.parametrize(
    "query", [{"state": "lost"}, {"limit": 0}, {"limit": "x"}, {"cursor": "never given"}]
)
def test_a_list_that_makes_no_sense_is_refused(server: Server, query: dict[str, Any]) -> None:
    answer = server.http.get("/jobs", params=query)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-parameter")


CALLS = [
    ("GET", ""),
    ("GET", "/events"),
    ("GET", "/log"),
    ("GET", "/result"),
    ("GET", "/volume"),
    ("GET", "/preview.png"),
    ("GET", "/bundle"),
    ("POST", "/cancel"),
    ("POST", "/rerun"),
    ("DELETE", ""),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize(
    "job_id", ["2026-01-01-00-00-00-937dbf08-7784-499c-b861-12aded55745a", "x", "..%2f..%2fmodels"]
)
def test_a_job_that_is_not_there_is_404(
    server: Server, method: str, path: str, job_id: str
) -> None:
    answer = server.http.request(method, f"/jobs/{job_id}{path}")
    assert answer.status_code == 404
    assert answer.json()["code"] in ("job-not-found", "not-found")


def test_a_bundle_takes_nothing_of_what_is_to_stay_free(start_server: StartServer) -> None:
    server = start_server()
    job_id = server.ended(submit(server))["id"]
    server.stop()
    server = start_server(min_free_bytes="1000TiB")
    bundle = f"/jobs/{job_id}/bundle"
    answer = server.http.get(bundle, params={"voxels": "true"})
    assert (answer.status_code, answer.json()["code"]) == (507, "disk-full")
    assert server.http.get(bundle).status_code == 200
    eventually(lambda: not server.uploads())


# --- events --------------------------------------------------------------------------------


def test_events_tell_each_state_and_end(server: Server) -> None:
    job_id = submit(server)
    events = list(events_of(server, job_id))
    states = [event["state"] for event in events if event["event"] == "state"]
    assert states == ["queued", "running", "succeeded"]
    stages = [event["stage"] for event in events if event["event"] == "progress"]
    assert stages[0] == "loading"
    assert stages[-1] == "checking"
    fractions = [event["fraction"] for event in events if event["event"] == "progress"]
    assert fractions == sorted(fractions)
    numbers = [int(event["n"]) for event in events]
    assert numbers == sorted(set(numbers))


def test_events_are_replayed_after_any_of_them_and_204_after_the_last(
    server: Server, done: dict[str, Any]
) -> None:
    events = list(events_of(server, done["id"]))
    assert list(events_of(server, done["id"], last=events[1]["n"])) == events[2:]
    strange = {"Last-Event-ID": "9" * 5000}
    assert server.http.get(f"/jobs/{done['id']}/events", headers=strange).status_code == 200
    headers = {"Last-Event-ID": events[-1]["n"]}
    answer = server.http.get(f"/jobs/{done['id']}/events", headers=headers)
    assert answer.status_code == 204


def test_events_outlive_the_server(start_server: StartServer) -> None:
    server = start_server()
    job_id = submit(server)
    before = list(events_of(server, job_id))
    server.stop()
    assert list(events_of(start_server(), job_id)) == before


def test_a_stream_ends_when_the_server_stops(start_server: StartServer) -> None:
    server = start_server("hangs.py", drain_seconds=0)
    job_id = submit(server)
    seen = []
    for event in events_of(server, job_id):
        seen.append(event["state"])
        if event["state"] == "running" and server.process.poll() is None:
            server.process.terminate()
    assert "running" in seen
    assert server.process.wait(20) == 0


# --- log, result, preview, bundle ----------------------------------------------------------


def test_the_log_can_be_read_while_the_plugin_runs(start_server: StartServer) -> None:
    server = start_server("staged.py")
    job_id = submit(server)
    until(server, job_id, "running")
    (server.workspace / "jobs" / job_id / "infer").touch()  # which this fake waits for
    for event in events_of(server, job_id):
        if event.get("stage") == "inferring":
            break
    assert "Loading dataset" in server.http.get(f"/jobs/{job_id}/log").text


@pytest.mark.parametrize(("what", "name"), [("result", "output"), ("volume", "input")])
def test_a_download_has_an_etag_and_ranges(
    server: Server, done: dict[str, Any], what: str, name: str
) -> None:
    url = f"/jobs/{done['id']}/{what}"
    whole = server.http.get(url)
    assert whole.status_code == 200
    assert whole.headers["Content-Type"] == "application/octet-stream"
    assert whole.headers["Content-Disposition"] == f'attachment; filename="{name}.nii.gz"'
    etag = whole.headers["ETag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        same = server.http.get(url, headers={"If-None-Match": known})
        assert (same.status_code, same.headers["ETag"], same.content) == (304, etag, b"")
        assert same.headers["X-Pfms-Job"] == done["id"]
    head = server.http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(whole.content))
    part = server.http.get(url, headers={"Range": "bytes=10-19", "If-Range": etag})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    tail = server.http.get(url, headers={"Range": "bytes=-5"})
    assert (tail.status_code, tail.content) == (206, whole.content[-5:])
    beyond = server.http.get(url, headers={"Range": "bytes=999999-"})
    assert beyond.status_code == 416
    for odd in ("bytes=x", "lines=1-2", "bytes=5-2"):
        assert server.http.get(url, headers={"Range": odd}).content == whole.content


def test_each_resultant_has_an_etag_of_its_own(server: Server, done: dict[str, Any]) -> None:
    paths = ("result", "result?resultant=onehot", "volume")
    tags = [server.http.head(f"/jobs/{done['id']}/{path}").headers["ETag"] for path in paths]
    assert len(set(tags)) == len(paths)


@pytest.mark.parametrize("gzipped", [True, False], ids=["gz", "plain"])
def test_the_volume_is_the_one_that_was_sent(server: Server, gzipped: bool) -> None:
    sent = nifti_bytes(seed=11, gzipped=gzipped)
    answer = server.http.get(f"/jobs/{server.submit(sent)}/volume")
    assert answer.status_code == 200
    if gzipped:
        assert answer.content == sent
    else:
        assert gzip.decompress(answer.content) == sent


def test_the_volume_is_there_in_every_state(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    running, queued = submit(server), submit(server)
    until(server, running, "running")
    for job_id in (running, queued):
        assert server.http.get(f"/jobs/{job_id}/volume").content == nifti_bytes()
        server.http.post(f"/jobs/{job_id}/cancel")
        assert ended(server, job_id)["state"] == "cancelled"
        assert server.http.get(f"/jobs/{job_id}/volume").content == nifti_bytes()


def test_logits_are_there_only_if_the_run_made_them(server: Server, done: dict[str, Any]) -> None:
    answer = server.http.get(f"/jobs/{done['id']}/result", params={"resultant": "logits"})
    assert (answer.status_code, answer.json()["code"]) == (409, "resultant-not-made")
    again = server.http.post(f"/jobs/{done['id']}/rerun", params={"resultant": "logits"})
    assert again.status_code == 202
    job_id = again.json()["id"]
    assert ended(server, job_id)["rerun_of"] == done["id"]
    answer = server.http.get(f"/jobs/{job_id}/result", params={"resultant": "logits"})
    assert answer.status_code == 200


def test_the_result_of_a_job_that_has_none_is_409(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    job_id = submit(server)
    answer = server.http.get(f"/jobs/{job_id}/result")
    assert (answer.status_code, answer.json()["code"]) == (409, "job-not-finished")
    server.http.post(f"/jobs/{job_id}/cancel")
    ended(server, job_id)
    for path in ("result", "preview.png"):
        answer = server.http.get(f"/jobs/{job_id}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (409, "job-failed")
        assert "cancelled" in answer.json()["detail"]


def test_the_preview_is_a_picture(server: Server, done: dict[str, Any]) -> None:
    answer = server.http.get(f"/jobs/{done['id']}/preview.png")
    assert answer.headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))
    assert picture.std() > 5, "there is something on it"


def test_a_preview_shows_what_is_asked_for(server: Server, done: dict[str, Any]) -> None:
    url = f"/jobs/{done['id']}/preview.png"
    asked: tuple[dict[str, Any], ...] = (
        {},
        {"plane": "axial"},
        {"plane": "axial", "slice": 3},
        {"plane": "sagittal"},
        {"mosaic": 4},
        {"plane": "coronal", "mosaic": 4},
    )
    seen, tags = set(), set()
    for query in asked:
        answer = server.http.get(url, params=query)
        assert answer.status_code == 200, answer.text
        assert answer.headers["Cache-Control"] == "private, no-cache"
        seen.add(answer.content)
        tags.add(etag := answer.headers["ETag"])
        same = server.http.get(url, params=query, headers={"If-None-Match": etag})
        assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", etag)
    assert len(seen) == len(tags) == len(asked)


@pytest.mark.parametrize(
    ("query", "remedy"),
    [
        ("plane=axial&slice=24", "numbered from 0 to 23"),
        ("plane=coronal&slice=20", "numbered from 0 to 19"),
        ("slice=3", "plane"),
        ("plane=axial&slice=3&mosaic=4", "Leave out"),
        ("plane=oblique", ""),
        ("plane=axial&slice=-1", ""),
        ("plane=axial&slice=x", ""),
        ("mosaic=1", ""),
        ("mosaic=37", ""),
    ],
)
def test_a_preview_that_cannot_be_is_refused(
    server: Server, done: dict[str, Any], query: str, remedy: str
) -> None:
    answer = server.http.get(f"/jobs/{done['id']}/preview.png?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-parameter")
    assert remedy in answer.json()["remedy"]
    assert answer.json()["remedy"]


def test_a_purged_job_has_no_preview_even_for_those_who_know_it(start_server: StartServer) -> None:
    server = start_server("empty.py")
    job_id = ended(server, submit(server))["id"]
    url = f"/jobs/{job_id}/preview.png"
    answer = server.http.get(url)
    assert answer.status_code == 200, "an empty mask has a preview too"
    server.http.delete(f"/jobs/{job_id}", params={"purge": "voxels"})
    again = server.http.get(url, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.json()["code"]) == (410, "gone")


def test_the_bundle_explains_a_run_and_with_voxels_repeats_it(
    server: Server, done: dict[str, Any], tmp_path: Path
) -> None:
    small = zipfile.ZipFile(io.BytesIO(server.http.get(f"/jobs/{done['id']}/bundle").content))
    assert {Path(name).name for name in small.namelist()} == {
        "command.sh",
        "job.json",
        "plugin.log",
    }
    answer = server.http.get(f"/jobs/{done['id']}/bundle", params={"voxels": "true"})
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
    folder = tmp_path / done["id"]
    subprocess.run(["sh", "command.sh"], cwd=folder, check=True, capture_output=True)
    assert (folder / "rerun" / "inference" / "input" / "input_seg.nii.gz").is_file()
    assert list((server.workspace / "uploads").iterdir()) == [], "the zip was removed"


# --- cancel, remove, purge, rerun ----------------------------------------------------------


def test_a_waiting_job_is_cancelled_at_once(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    running, waiting = submit(server), submit(server)
    answer = server.http.post(f"/jobs/{waiting}/cancel")
    assert answer.status_code == 202
    assert answer.json()["cancel_requested"] is True
    assert show(server, waiting)["state"] == "cancelled"
    again = server.http.post(f"/jobs/{waiting}/cancel")
    assert (again.status_code, again.json()["state"]) == (200, "cancelled")
    server.http.post(f"/jobs/{running}/cancel")
    job = ended(server, running)
    assert (job["state"], job["error"]["code"]) == ("cancelled", "cancelled")


def test_an_active_job_is_not_removed(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    job_id = submit(server)
    for query in ({}, {"purge": "voxels"}):
        answer = server.http.delete(f"/jobs/{job_id}", params=query)
        assert (answer.status_code, answer.json()["code"]) == (409, "job-active")


def test_a_removed_job_is_gone_with_its_folder(start_server: StartServer) -> None:
    server = start_server()
    job_id = server.infer().headers["X-Pfms-Job"]
    assert server.http.delete(f"/jobs/{job_id}").status_code == 204
    assert server.http.get(f"/jobs/{job_id}").status_code == 404
    assert server.job_folders() == []


def test_a_purge_removes_the_voxels_and_keeps_the_record(start_server: StartServer) -> None:
    server = start_server()
    job_id = server.infer().headers["X-Pfms-Job"]
    assert server.http.delete(f"/jobs/{job_id}", params={"purge": "voxels"}).status_code == 204
    assert show(server, job_id)["purged_at"] is not None
    left = {path.name for path in (server.workspace / "jobs" / job_id).rglob("*")}
    assert left == {"command.sh", "job.json", "plugin.log"}
    for method, path in (
        ("GET", "result"),
        ("GET", "volume"),
        ("GET", "preview.png"),
        ("POST", "rerun"),
        ("GET", "bundle?voxels=true"),
    ):
        answer = server.http.request(method, f"/jobs/{job_id}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (410, "gone"), path
    assert server.http.get(f"/jobs/{job_id}/bundle").status_code == 200
    assert server.http.get(f"/jobs/{job_id}/log").status_code == 200
    assert server.http.delete(f"/jobs/{job_id}", params={"purge": "voxels"}).status_code == 204


def test_a_rerun_gives_the_same_voxels_though_the_model_is_gone(
    start_server: StartServer,
) -> None:
    server = start_server()
    first = server.infer()
    assert server.http.delete("/spleenseg/modelpth/demo").status_code == 204
    answer = server.http.post(f"/jobs/{first.headers['X-Pfms-Job']}/rerun")
    assert answer.status_code == 202
    job = ended(server, answer.json()["id"])
    assert job["state"] == "succeeded"
    assert server.http.get(f"/jobs/{job['id']}/result").content == first.content


# --- the queue -----------------------------------------------------------------------------


def test_a_full_queue_is_503_with_an_honest_retry_after(start_server: StartServer) -> None:
    server = start_server("hangs.py", queue_limit=2)
    running = submit(server)
    until(server, running, "running")
    waiting = [submit(server) for _ in range(2)]
    answer = server.infer(headers=ASYNC)
    assert (answer.status_code, answer.json()["code"]) == (503, "queue-full")
    assert 1 <= int(answer.headers["Retry-After"]) <= 30
    assert len(server.job_folders()) == 3
    server.http.post(f"/jobs/{waiting[0]}/cancel")
    submit(server)


def test_slots_run_side_by_side_and_the_rest_wait(start_server: StartServer) -> None:
    server = start_server("hangs.py", jobs_per_device=2)
    jobs = [submit(server) for _ in range(3)]
    for job_id in jobs[:2]:
        until(server, job_id, "running")
    assert show(server, jobs[2])["state"] == "queued"
    environment = json.loads((server.workspace / "jobs" / jobs[0] / "job.json").read_text())[
        "environment"
    ]
    assert int(environment["OMP_NUM_THREADS"]) >= 1, "each has its share of the cores"


# --- who holds on to a job -----------------------------------------------------------------


def leave(server: Server, **headers: str) -> str:
    """Send a blocking request and hang up once its job runs; the job's ID."""
    body = {"file": nifti_bytes()}
    url = f"{server.url}/api/v1/spleenseg/NIfTIinference"
    client = httpx.Client(timeout=60)

    def block() -> None:
        with pytest.raises(httpx.HTTPError):
            client.post(url, params={"modelID": "demo"}, files=body, headers=headers)

    thread = threading.Thread(target=block)
    thread.start()
    while not (jobs := server.http.get("/jobs").json()["jobs"]):
        time.sleep(0.05)  # there is no event for a job that is not there yet
    job_id: str = jobs[0]["id"]
    until(server, job_id, "running")
    for transport in (client._transport,):
        for connection in transport._pool.connections:  # type: ignore[attr-defined]
            connection._connection._network_stream.get_extra_info("socket").shutdown(2)
    thread.join()
    client.close()
    return job_id


def test_a_blocking_job_is_cancelled_with_its_client(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    job = ended(server, leave(server))
    assert job["state"] == "cancelled"
    assert "client" in job["error"]["detail"]


def test_a_job_with_a_key_runs_on_without_its_client(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    job_id = leave(server, **{"Idempotency-Key": "k"})
    assert show(server, job_id)["state"] == "running"
    submit(server)  # the server has seen to the disconnect by now
    assert show(server, job_id)["state"] == "running"


# --- keeping house -------------------------------------------------------------------------


def test_voxels_and_records_go_when_their_time_has_come(start_server: StartServer) -> None:
    server = start_server()
    old = server.infer().headers["X-Pfms-Job"]
    server.stop()
    server = start_server(keep_volumes_hours=1e-9)
    while show(server, old)["purged_at"] is None:
        time.sleep(0.02)
    assert server.http.get(f"/jobs/{old}/result").json()["code"] == "gone"
    server.stop()
    server = start_server(keep_records_days=1e-9)
    while server.http.get(f"/jobs/{old}").status_code == 200:
        time.sleep(0.02)
    assert server.job_folders() == []


def test_nothing_goes_before_its_time(start_server: StartServer) -> None:
    server = start_server()
    old = server.infer().headers["X-Pfms-Job"]
    server.stop()
    server = start_server(keep_volumes_hours=1, keep_records_days=1)
    assert server.infer().status_code == 200
    assert server.http.get(f"/jobs/{old}/result").status_code == 200


def test_with_too_little_room_uploads_are_507_and_ready_says_so(
    start_server: StartServer,
) -> None:
    server = start_server(min_free_bytes="100000TiB")
    for answer in (
        server.infer(),
        server.http.post("/spleenseg/modelpth", params={"modelID": "m"}, files={"file": b"x"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (507, "disk-full")
    ready = httpx.get(f"{server.url}/health/ready")
    assert ready.status_code == 503
    assert set(ready.json()["missing"]) == {"disk-full"}
    assert httpx.get(f"{server.url}/health/live").status_code == 200


def test_the_labels_of_the_fake_are_what_came_back(server: Server) -> None:
    content = server.infer().content
    assert set(gzip.decompress(content)[352:]) == {0, 1}
