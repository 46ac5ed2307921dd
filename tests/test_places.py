"""What is promised before a body is read: a place in the queue, room on the disk, a device."""

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Server, StartServer, eventually, nifti_bytes, seed_model, start
from tests.refused import check
from tests.wire import FORM, Wire, form, part

INFER = "/api/v1/spleenseg/NIfTIinference?modelID=demo"


def begin_upload(server: Server, size: int) -> Wire:
    """Announce an upload and send only its first bytes for now."""
    wire = Wire(server.url)
    wire.head("POST", INFER, Content_Type=FORM, Content_Length=size, Prefer="respond-async")
    wire.send(part(b"the first bytes")[:-2])
    return wire


def is_receiving(server: Server) -> bool:
    return bool(server.uploads())


def test_with_a_queue_of_one_exactly_two_of_fifty_simultaneous_posts_are_accepted(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", queue_limit=1)
    volume = nifti_bytes()

    def post(_: int) -> str:
        answer = server.infer(volume, headers={"Prefer": "respond-async"})
        if answer.status_code == 503:
            assert answer.json()["code"] == "queue-full"
            assert int(answer.headers["Retry-After"]) >= 1
        return str(answer.status_code)

    with ThreadPoolExecutor(50) as threads:
        assert Counter(threads.map(post, range(50))) == {"202": 2, "503": 48}
    eventually(lambda: server.http.get("/jobs?state=running").json()["jobs"])
    states = Counter(job["state"] for job in server.http.get("/jobs").json()["jobs"])
    assert states == {"running": 1, "queued": 1}
    assert len(server.job_folders()) == 2
    assert server.uploads() == []


def test_a_place_is_reserved_while_a_volume_arrives_and_freed_when_it_is_refused(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", queue_limit=1)
    server.submit()
    with begin_upload(server, 1000):
        eventually(lambda: is_receiving(server))
        check(server.infer(), 503, "queue-full", server)
    eventually(lambda: not is_receiving(server))  # the client went away
    assert server.infer(b"not a volume").status_code == 422
    server.submit()


def test_a_repeat_needs_no_place(start_server: StartServer) -> None:
    server = start_server("hangs.py", queue_limit=1)
    server.submit()
    key = {"Idempotency-Key": "k"}
    job_id = server.submit(headers=key)
    assert server.submit(headers=key) == job_id


def test_a_repeat_of_a_job_that_gave_up_its_key_meanwhile_needs_a_place(
    start_server: StartServer,
) -> None:
    server = start_server("hangs.py", queue_limit=1)
    key, body = {"Idempotency-Key": "k"}, form(part(nifti_bytes()))
    job_id = server.submit(headers=key)
    with Wire(server.url) as wire:
        headers: dict[str, str | int] = {"Content-Type": FORM, "Content-Length": len(body), **key}
        wire.head("POST", INFER, Prefer="respond-async", **headers)
        eventually(lambda: is_receiving(server))
        server.http.post(f"/jobs/{job_id}/cancel")
        server.ended(job_id)
        server.submit()
        server.submit()
        wire.send(body)
        answer = wire.answer()
    assert (answer.status, answer.json()["code"]) == (503, "queue-full")
    assert len(server.job_folders()) == 3
    assert server.uploads() == []


def test_a_rerun_needs_a_place(start_server: StartServer) -> None:
    server = start_server("hangs.py", queue_limit=1)
    job_id = server.submit()
    server.http.post(f"/jobs/{job_id}/cancel")
    server.ended(job_id)
    server.submit()
    server.submit()
    check(server.http.post(f"/jobs/{job_id}/rerun"), 503, "queue-full", server)


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def test_room_is_promised_to_one_upload_alone(start_server: StartServer) -> None:
    server = start_server(max_upload_bytes="1000TiB")
    half = free_bytes(server.workspace) * 6 // 10
    with begin_upload(server, half):
        eventually(lambda: is_receiving(server))
        with begin_upload(server, half) as second:
            answer = second.answer()
            assert (answer.status, answer.json()["code"]) == (507, "disk-full")
        server.submit()  # a small one still fits
    eventually(lambda: not is_receiving(server))
    with begin_upload(server, half):
        eventually(lambda: is_receiving(server))


def test_an_upload_of_unknown_size_is_refused_when_the_room_runs_out(
    start_server: StartServer,
) -> None:
    server = start_server("ok.py")
    server.stop()
    keep_free = free_bytes(server.workspace) - (48 << 20)
    server = start_server(min_free_bytes=keep_free)

    pieces = [part(b"")[:-2], *[bytes(1 << 20)] * 1000, form()]
    answer = server.http.post(
        INFER.removeprefix("/api/v1"), content=iter(pieces), headers={"Content-Type": FORM}
    )
    check(answer, 507, "disk-full", server)
    assert server.uploads() == []


# --- devices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["infer", "rerun"])
def test_when_no_chosen_device_is_available_any_longer_nothing_is_accepted(
    tmp_path: Path, call: str
) -> None:
    gpus = tmp_path / "gpus"
    gpus.write_text("1")
    program = tmp_path / "with_gpus.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom pfms.cli import main\n"
        "from pfms.executors import devices\n"
        "devices.torch_cuda_version = lambda: '12.1'\n"
        f"devices.driver_gpus = lambda: (int(Path({str(gpus)!r}).read_text()), 12)\n"
        "main()\n"
    )
    workspace = tmp_path / "workspace"
    seed_model(workspace)
    server = start(workspace, program=(str(program),), devices="auto")
    try:
        assert server.http.get("/spleenseg/inference/device").json()["device"] == "cuda:0"
        job_id = server.ended(server.submit())["id"]
        gpus.write_text("0")
        if call == "infer":
            answer = server.infer(headers={"Prefer": "respond-async"})
        else:
            answer = server.http.post(f"/jobs/{job_id}/rerun")
        problem = check(answer, 503, "no-device", server)
        assert "cuda:0" in problem["detail"]
        assert answer.headers["Retry-After"]
        assert "no-device" in server.http.get(f"{server.url}/health/ready").json()["missing"]
        gpus.write_text("1")
        assert server.infer().status_code == 200
    finally:
        server.stop()
