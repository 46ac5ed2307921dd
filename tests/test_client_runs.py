"""`Client` and `AsyncClient` against a real server: what they take, give, and get over."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import nibabel as nib
import numpy as np
import pytest

from pfms.access.tokens import add_token
from pfms.client import (
    AsyncClient,
    BearerToken,
    Client,
    ClientError,
    PfmsProblem,
    Segmentation,
    Unreachable,
)
from pfms.client.patience import Patience
from tests.conftest import ROOT, Server, StartServer, nifti_bytes, spleen_of
from tests.cutting import Cut, port_of, relay
from tests.small_server import Answers, small_server
from tools.blocking_client import CLIENT, MADE, made_from

Segment = Callable[..., Segmentation]


def blocking(url: str, *what: Any, auth: httpx.Auth | None = None, **how: Any) -> Segmentation:
    with Client(url, auth=auth) as client:
        return client.segment(*what, **how)


def asynchronous(url: str, *what: Any, auth: httpx.Auth | None = None, **how: Any) -> Segmentation:
    async def segment() -> Segmentation:
        async with AsyncClient(url, auth=auth) as client:
            return await client.segment(*what, **how)

    return anyio.run(segment)


both = pytest.mark.parametrize("segment", [blocking, asynchronous])


@pytest.mark.parametrize("name", MADE)
def test_the_blocking_client_is_the_asynchronous_one_without_its_words(name: str) -> None:
    made = made_from((CLIENT / MADE[name]).read_text())

    assert made == (CLIENT / name).read_text(), "run python -m tools.blocking_client"
    assert not {"async", "await", "anyio"} & set(made.split())


# --- what they take and give -----------------------------------------------------------------


@both
@pytest.mark.parametrize("form", ["path", "text", "bytes", "plain", "image", "mgh"])
def test_a_volume_may_come_in_many_forms(
    server: Server, segment: Segment, form: str, tmp_path: Path
) -> None:
    content = nifti_bytes()
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(content)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    mgh = nib.MGHImage(np.asarray(image.dataobj).astype(np.float32), image.affine)
    forms = {"path": path, "text": str(path), "bytes": content, "plain": image.to_bytes()}
    forms |= {"image": image, "mgh": mgh}

    done = segment(server.url, forms[form], model="demo")

    assert done.job is not None
    assert done.content == server.http.get(f"/jobs/{done.job['id']}/result").content
    labels = done.image
    assert np.array_equal(np.asarray(labels.dataobj) == 1, spleen_of(content))
    assert np.allclose(labels.affine, image.affine)
    assert done.ml == pytest.approx(spleen_of(content).sum() * 0.027)
    done.save(tmp_path / "out.nii.gz")
    assert (tmp_path / "out.nii.gz").read_bytes() == done.content


def test_files_may_be_named_by_text(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "out.nii.gz"
    with Client(server.url) as client:
        job = client.infer(nifti_bytes(), "demo", str(target))
        assert job is not None
        made = target.read_bytes()
        client.save_result(job["id"], str(target))
        assert target.read_bytes() == made
        client.upload_model(str(ROOT / "examples" / "demo_model.pth"), "by-text")
        client.remove_model("by-text")


def test_what_is_no_volume_is_a_type_error(server: Server) -> None:
    with Client(server.url) as client, pytest.raises(TypeError, match="not int"):
        client.segment(5, "demo")


def test_a_run_step_by_step(server: Server) -> None:
    async def run() -> None:
        async with AsyncClient(server.url) as client:
            job = await client.submit(nifti_bytes(), "demo")
            states = [event.data async for event in client.events(job["id"]) if event]
            assert [one["state"] for one in states if "state" in one][-1] == "succeeded"
            assert (await client.wait(job["id"]))["state"] == "succeeded"
            found = await client.result(job["id"])
            assert found.job == await client.job(job["id"])
            assert found.image.shape == (24, 20, 24)
            again = await client.wait((await client.rerun(job["id"]))["id"])
            assert again["state"] == "succeeded"

    anyio.run(run)


@both
def test_what_goes_wrong_has_a_code_and_a_remedy(server: Server, segment: Segment) -> None:
    with pytest.raises(PfmsProblem) as told:
        segment(server.url, b"no volume", "demo")
    assert (told.value.code, told.value.status) == ("not-a-nifti", 422)
    assert told.value.remedy
    with pytest.raises(ClientError) as away:
        segment("http://127.0.0.1:9", b"", "demo")
    assert isinstance(away.value, Unreachable)
    assert (away.value.code, bool(away.value.remedy)) == ("unreachable", True)


@both
def test_one_key_is_one_job_however_often_it_is_sent(server: Server, segment: Segment) -> None:
    volume = nifti_bytes(seed=11)
    first, second = (segment(server.url, volume, "demo", key="the-same") for _ in range(2))
    assert first == second
    with pytest.raises(PfmsProblem) as told:
        segment(server.url, nifti_bytes(seed=12), "demo", key="the-same")
    assert told.value.code == "idempotency-mismatch"


def test_a_key_whose_run_failed_gives_its_job_and_why(start_server: StartServer) -> None:
    server = start_server("exit3.py")
    with Client(server.url) as client:
        first = client.wait(client.submit(nifti_bytes(), "demo", key="k")["id"])
        assert client.submit(nifti_bytes(), "demo", key="k") == first
        with pytest.raises(PfmsProblem) as told:
            client.segment(nifti_bytes(), "demo", key="k")
    assert (told.value.code, told.value.job) == ("plugin-failed", first["id"])


# --- what they get over ----------------------------------------------------------------------


@both
@pytest.mark.parametrize("with_token", [False, True])
def test_cut_connections_are_got_over_and_nothing_is_run_twice(
    start_server: StartServer, segment: Segment, with_token: bool, tmp_path: Path
) -> None:
    settings, auth = {}, None
    if with_token:
        token = add_token(tmp_path / "tokens.json", "me", frozenset({"infer"}))
        settings, auth = {"tokens_file": tmp_path / "tokens.json"}, BearerToken(token)
    server = start_server(**settings)
    cuts = (
        Cut("up", b"GET /api/v1/spleenseg/modelpth"),
        Cut("up", b'name="file"'),  # in the middle of the body
        Cut("down", b"202 Accepted"),
        Cut("down", b"202 Accepted"),
        Cut("down", b'"state"'),
        Cut("down", b"200 OK"),
        Cut("down", b"octet-stream"),
    )
    volume = nifti_bytes((40, 40, 40))
    with relay(server.url, *cuts) as between:
        done = segment(between.url, volume, "demo", auth=auth)
        assert between.cuts == []
    assert np.array_equal(np.asarray(done.image.dataobj) == 1, spleen_of(volume))
    assert len(server.job_folders()) == 1
    assert done.job is not None
    assert (done.job["state"], done.job["attempts"]) == ("succeeded", 1)


@both
def test_a_server_killed_before_its_answer_arrived_has_one_job_after_its_restart(
    start_server: StartServer, segment: Segment
) -> None:
    servers = [start_server("ok.py")]

    def restart() -> None:
        servers[0].process.kill()
        servers[0].process.wait()
        servers.append(start_server("ok.py"))
        between.port = port_of(servers[1].url)

    with relay(servers[0].url, Cut("down", b"202 Accepted", restart)) as between:
        done = segment(between.url, nifti_bytes(), "demo")
    assert len(servers) == 2
    assert done.job is not None
    assert done.job["state"] == "succeeded"
    assert [folder.name for folder in servers[1].job_folders()] == [done.job["id"]]


@both
def test_a_busy_server_is_asked_again_when_it_says_so(segment: Segment) -> None:
    keys: list[str] = []

    def answer(request: Answers) -> None:
        if request.command == "GET":
            request.say(b'{"modelID": "demo"}')
            return
        request.skip_body()
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) < 3:
            status, code = [(503, "queue-full"), (429, "too-many-requests")][len(keys) - 1]
            problem = {"code": code, "detail": "Not now.", "remedy": "Later."}
            content = json.dumps(problem).encode()
            request.send_response(status)
            request.send_header("Retry-After", "0")
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
        else:
            request.say(b"a volume")

    with small_server(answer) as url:
        assert segment(url, nifti_bytes(), "demo").content == b"a volume"
    assert len(keys) == 3
    assert len(set(keys)) == 1


@both
def test_a_server_that_keeps_no_jobs_gets_a_volume_once(segment: Segment) -> None:
    posts = []

    def answer(request: Answers) -> None:
        if request.command == "POST":
            posts.append(request.path)
            request.skip_body()
            request.close_connection = True
        else:
            request.say(b'{"detail": "Not Found"}', 404)

    with small_server(answer) as url, pytest.raises(Unreachable):
        segment(url, nifti_bytes(), "demo")
    assert len(posts) == 1


def test_patience_ends() -> None:
    away, busy = Unreachable("a"), PfmsProblem("queue-full", "b", status=503, retry_after=5)
    assert Patience(0, 0).pause_after(away) is None
    assert Patience(0, 0).pause_after(busy) is None
    assert Patience(0, 10).pause_after(busy) == 5
    assert Patience(600, 600).pause_after(PfmsProblem("queue-full", "b", status=503)) is None
    gateway = PfmsProblem("http-502", "c", status=502)
    one = Patience(600, 0)
    pauses = [one.pause_after(error) for error in (away, gateway, away, away, away, away, away)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0]
    advised = PfmsProblem("queue-full", "b", status=503, retry_after=3600)
    assert Patience(0, 600).pause_after(advised) == 30


def test_a_cancelled_task_leaves_its_job_running(start_server: StartServer) -> None:
    server = start_server("hangs.py")

    async def give_up() -> None:
        async with AsyncClient(server.url) as client:
            with anyio.move_on_after(60) as scope:
                await client.segment(
                    nifti_bytes(), "demo", on_update=lambda u: scope.cancel() if u.job else None
                )
            (job,) = await client.jobs()
            await client.cancel(job["id"])
            assert (await client.wait(job["id"]))["state"] == "cancelled"

    anyio.run(give_up)


# --- installed by itself ---------------------------------------------------------------------


def test_the_client_imports_nothing_of_the_server() -> None:
    code = "import pfms.client, pfms.cli, sys; print(*sys.modules)"
    line = [sys.executable, "-c", code]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ended.stdout.split()}
    assert loaded & {"fastapi", "starlette", "pydantic", "numpy", "nibabel", "psutil"} == set()
