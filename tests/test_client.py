"""The client, against a real server, and against small ones that are no pfms."""

import json
import os
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pfms.client.client import Client
from pfms.client.problems import PfmsProblem, Unreachable
from pfms.client.updates import Update
from tests.command import COMMAND, environment
from tests.conftest import (
    PLUGINS,
    ROOT,
    Server,
    StartServer,
    eventually,
    nifti_bytes,
    seed_model,
)
from tests.small_server import Answers, small_server

WEIGHTS = ROOT / "examples" / "demo_model.pth"


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as one:
        yield one


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "Jane Doe.nii.gz"
    path.write_bytes(nifti_bytes())
    return path


# --- a run ---------------------------------------------------------------------------------


def test_a_volume_comes_back_segmented(
    client: Client, server: Server, volume: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.nii.gz"
    job = client.infer(volume, "demo", target)
    assert job is not None
    assert job["state"] == "succeeded"
    assert target.read_bytes() == server.http.get(f"/jobs/{job['id']}/result").content
    assert sorted(tmp_path.iterdir()) == [volume, target], "nothing half is left beside it"


@pytest.mark.parametrize("resultant", ["onehot", "logits"])
def test_another_resultant_can_be_asked_for(
    client: Client, server: Server, volume: Path, tmp_path: Path, resultant: str
) -> None:
    target = tmp_path / "out.nii.gz"
    job = client.infer(volume, "demo", target, resultant=resultant)
    assert job is not None
    assert job["resultant"] == resultant
    answer = server.http.get(f"/jobs/{job['id']}/result", params={"resultant": resultant})
    assert target.read_bytes() == answer.content


def test_its_progress_is_reported_stage_by_stage(
    start_server: StartServer, volume: Path, tmp_path: Path
) -> None:
    server = start_server("staged.py")
    updates: list[Update] = []

    def let_on(update: Update) -> None:
        updates.append(update)
        for stage, file in (("loading", "infer"), ("inferring", "save"), ("resampling", "end")):
            if update.stage == stage:
                (server.job_folders()[0] / file).touch()

    with Client(server.url) as client:
        client.infer(volume, "demo", tmp_path / "out.nii.gz", on_update=let_on)
    stages = list(dict.fromkeys(update.stage for update in updates if update.job))
    seen = [stage for stage in stages if stage not in ("writing", "checking")]  # they are short
    assert seen == ["waiting", "loading", "inferring", "resampling", "downloading"]
    fractions = [update.fraction for update in updates if update.fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0
    before = [update for update in updates if not update.job]
    assert {update.stage for update in before} == {"uploading", "checking"}
    sent = [update.done for update in before]
    assert sent[-1] == volume.stat().st_size
    assert all(update.job for update in updates if update.stage in ("loading", "downloading"))


def test_a_failed_run_is_reported_with_its_cause_and_job(
    start_server: StartServer, volume: Path, tmp_path: Path
) -> None:
    server = start_server("exit3.py")
    with Client(server.url) as client, pytest.raises(PfmsProblem) as told:
        client.infer(volume, "demo", tmp_path / "out.nii.gz")
    assert (told.value.code, told.value.status) == ("plugin-failed", None)
    assert told.value.job == server.job_folders()[0].name
    assert list(tmp_path.glob("*out*")) == []


def test_an_unknown_model_is_refused_before_the_volume_is_sent(
    client: Client, volume: Path, tmp_path: Path
) -> None:
    updates: list[Update] = []
    with pytest.raises(PfmsProblem) as told:
        client.infer(volume, "nope", tmp_path / "out.nii.gz", on_update=updates.append)
    assert (told.value.code, told.value.status, updates) == ("model-not-found", 404, [])


def test_a_run_is_waited_for_through_a_crash_of_the_server(tmp_path: Path, volume: Path) -> None:
    workspace = tmp_path / "workspace"
    seed_model(workspace)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def serve() -> subprocess.Popen[str]:
        settings = {"plugin_command": str(PLUGINS / "staged.py"), "min_free_bytes": "0"}
        argv = [*COMMAND, "serve", "--port", str(port), "--workspace", str(workspace)]
        process = subprocess.Popen(
            argv,
            env=environment(**settings, devices="cpu", drain_seconds="0", executor="fresh"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout
        assert process.stdout.readline().startswith("pfms listens")
        return process

    loading = threading.Event()
    first = serve()
    with Client(f"http://127.0.0.1:{port}") as client, ThreadPoolExecutor(1) as thread:
        ending = thread.submit(
            client.infer,
            volume,
            "demo",
            tmp_path / "out.nii.gz",
            on_update=lambda update: loading.set() if update.stage == "loading" else None,
        )
        assert loading.wait(60)
        first.kill()
        first.communicate()
        folder = next((workspace / "jobs").iterdir())
        for file in ("infer", "save", "end"):
            (folder / file).touch()
        second = serve()
        try:
            job = ending.result(60)
        finally:
            second.terminate()
            second.communicate()
    assert job is not None
    assert (job["state"], job["attempts"]) == ("succeeded", 2)


# --- servers that are otherwise ------------------------------------------------------------


def test_a_server_without_jobs_is_waited_for_as_it_blocks(volume: Path, tmp_path: Path) -> None:
    def answer(request: Answers) -> None:
        if request.command == "POST":
            request.skip_body()
            request.say(b"a volume")
        else:
            request.say(b'{"detail": "Not Found"}', 404)

    target = tmp_path / "out.nii.gz"
    with small_server(answer) as url, Client(url) as client:
        assert client.infer(volume, "demo", target) is None
    assert target.read_bytes() == b"a volume"


def test_an_upload_is_read_piece_by_piece_and_nameless(tmp_path: Path) -> None:
    heads: list[bytes] = []

    def answer(request: Answers) -> None:
        heads.append(request.skip_body()[:300])
        request.say(b'{"modelID": "big"}')

    weights = tmp_path / "Jane Doe.pth"
    with weights.open("wb") as file:
        os.truncate(file.fileno(), 64 << 20)
    with small_server(answer) as url, Client(url) as client:
        tracemalloc.start()
        client.upload_model(weights, "big")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20
    assert b'name="file"' in heads[0]
    assert b"Jane" not in heads[0]


def test_a_download_that_breaks_is_fetched_again_whole(tmp_path: Path) -> None:
    asked = []

    def answer(request: Answers) -> None:
        asked.append(request.path)
        if len(asked) == 1:
            request.send_response(200)
            request.send_header("Content-Length", "100")
            request.end_headers()
            request.wfile.write(b"half of ")
            request.connection.shutdown(socket.SHUT_RDWR)
        else:
            request.say(b"the whole")

    target = tmp_path / "out.nii.gz"
    with small_server(answer) as url, Client(url) as client:
        client.save_result("a-job", target)
    assert len(asked) == 2
    assert target.read_bytes() == b"the whole"
    assert list(tmp_path.iterdir()) == [target]


def test_a_server_that_stays_away_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        Client(f"127.0.0.1:{port}", retry_seconds=0) as client,
        pytest.raises(Unreachable) as told,
    ):
        client.wait("a-job")
    assert f"127.0.0.1:{port}" in told.value.detail
    assert "pfms serve" in told.value.remedy


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"other": 1}'])
def test_a_server_that_is_not_pfms_is_recognised(content: bytes) -> None:
    with small_server(lambda request: request.say(content)) as url, Client(url) as client:
        with pytest.raises(PfmsProblem) as told:
            client.models()
        assert told.value.code == "not-pfms"


def test_a_refusal_in_other_words_keeps_them() -> None:
    with (
        small_server(lambda request: request.say(b"Bad\nGateway", 502)) as url,
        Client(url) as client,
        pytest.raises(PfmsProblem) as told,
    ):
        client.models()
    assert (told.value.code, told.value.status) == ("http-502", 502)
    assert "Bad Gateway" in told.value.detail


def test_a_long_list_of_jobs_is_fetched_page_by_page() -> None:
    def answer(request: Answers) -> None:
        last = "cursor=more" in request.path
        jobs = [{"id": "c"}] if last else [{"id": "a"}, {"id": "b"}]
        request.say(json.dumps({"jobs": jobs, "next": None if last else "more"}).encode())

    with small_server(answer) as url, Client(url) as client:
        assert [job["id"] for job in client.jobs(limit=10)] == ["a", "b", "c"]
        assert [job["id"] for job in client.jobs(limit=2)] == ["a", "b"]


# --- models and jobs -----------------------------------------------------------------------


def test_weights_are_stored_shown_and_removed(client: Client) -> None:
    stored = client.upload_model(WEIGHTS, "mine")
    assert stored["modelID"] == "mine"
    assert "mine" in client.models()
    assert client.model("mine")["sha256"] == stored["sha256"]
    client.remove_model("mine")
    assert "mine" not in client.models()


def test_a_job_is_followed_cancelled_and_removed(start_server: StartServer) -> None:
    server = start_server("hangs.py")
    job_id = server.submit()
    with Client(server.url) as client, ThreadPoolExecutor(1) as thread:
        log = thread.submit(lambda: b"".join(client.log(job_id, follow=True)))
        events = client.events(job_id)
        first = next(events)
        assert first is not None
        assert first.data["state"] == "queued"
        eventually(lambda: b"hanging" in b"".join(client.log(job_id)))
        assert client.cancel(job_id)["cancel_requested"]
        assert [event.data["state"] for event in events if event][-1] == "cancelled"
        assert log.result(30) == b"hanging\n"
        assert client.wait(job_id)["error"]["code"] == "cancelled"
        client.remove_job(job_id)
        assert client.jobs() == []


def test_voxels_are_purged_and_the_record_stays(client: Client, server: Server) -> None:
    job_id = server.ended(server.submit(nifti_bytes(seed=7)))["id"]
    client.remove_job(job_id, purge_voxels=True)
    assert client.job(job_id)["purged_at"]
    with pytest.raises(PfmsProblem, match="removed"):
        client.preview(job_id)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../about"])
def test_an_id_never_leads_to_another_path(client: Client, name: str) -> None:
    for call in (client.model, client.job, client.remove_model, client.remove_job, client.cancel):
        with pytest.raises(PfmsProblem) as told:
            call(name)
        assert told.value.status in (404, 422)


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("http://host:2024", "http://host:2024"),
        ("http://host:2024/api/v1/", "http://host:2024"),
        ("https://host/pfms/", "https://host/pfms"),
        ("host:2024", "http://host:2024"),
    ],
)
def test_a_server_may_be_named_in_several_ways(typed: str, url: str) -> None:
    with Client(typed) as client:
        assert client.url == url


@pytest.mark.parametrize("typed", ["", "ftp://host", "http://", "http://host:port"])
def test_what_is_not_a_url_is_a_value_error(typed: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        Client(typed)


def test_a_proxy_from_the_environment_is_not_used_for_this_machine(server: Server) -> None:
    code = "import sys; from pfms.client import Client; print(Client(sys.argv[1]).models())"
    proxied = environment() | {
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, server.url],
        env=proxied,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "demo" in done.stdout
