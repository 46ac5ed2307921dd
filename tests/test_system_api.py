"""About the service and its machine, the devices, and health."""

import json
import os
import platform
import shutil
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pfms import __version__
from pfms.executors import devices
from tests.conftest import Server, StartServer, seed_model, start
from tests.refused import check
from tests.test_start import working

DEVICE = "/spleenseg/inference/device"


@pytest.mark.parametrize("slash", ["", "/"])
def test_about_names_the_service_and_its_version(server: Server, slash: str) -> None:
    answer = server.http.get(f"/about{slash}")

    assert answer.status_code == 200
    assert answer.json() == {
        "name": "pfms",
        "about": answer.json()["about"],
        "version": __version__,
    }
    assert "pl-monai_spleenseg" in answer.json()["about"]


@pytest.mark.parametrize("echo", ["hello", "", "ä\n\0\U0001f600 & = %"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_sysinfo_describes_the_machine_and_echoes(server: Server, slash: str, echo: str) -> None:
    answer = server.http.get(f"/sysinfo{slash}", params={"echoBack": echo})

    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() == {"name", "version", "sysinfo", "echoBack"}
    assert (body["name"], body["version"]) == ("pfms", __version__)
    assert body["echoBack"] == {"msg": echo}
    machine: dict[str, Any] = body["sysinfo"]
    assert machine.keys() == {
        *("system", "machine", "uname", "platform", "version", "availablememory", "freememory"),
        *("cpucount", "loadavg", "cpu_percent", "hostname", "inet"),
    }
    assert machine["system"] == platform.system()
    assert machine["uname"] == list(platform.uname())
    assert machine["hostname"] == socket.gethostname()
    assert machine["cpucount"] == os.cpu_count()
    assert 0 < machine["availablememory"] <= psutil.virtual_memory().total
    assert len(machine["loadavg"]) == 3
    socket.inet_aton(machine["inet"])


def test_sysinfo_without_an_echo_echoes_nothing(server: Server) -> None:
    assert server.http.get("/sysinfo").json()["echoBack"] == {"msg": ""}


def test_the_health_calls_lie_outside_of_the_api_and_say_live_and_ready(server: Server) -> None:
    for slash in ("", "/"):
        live = server.http.get(f"{server.url}/health/live{slash}")
        ready = server.http.get(f"{server.url}/health/ready{slash}")
        assert (live.status_code, live.json()) == (200, {"status": "live"})
        assert ready.status_code == 200
        assert ready.json() == {"status": "ready", "missing": {}, "at": ready.json()["at"]}
    assert server.http.get("/health/live").status_code == 404


def test_too_little_room_on_the_disk_is_not_ready_and_refuses_uploads(
    start_server: StartServer,
) -> None:
    server = start_server(min_free_bytes="1000TiB")

    ready = server.http.get(f"{server.url}/health/ready")
    assert ready.status_code == 503
    assert ready.json()["missing"].keys() == {"disk-full"}
    check(server.infer(), 507, "disk-full", server)
    answer = server.http.post(
        "/spleenseg/modelpth", params={"modelID": "x"}, files={"file": b"weights"}
    )
    check(answer, 507, "disk-full", server)
    assert server.job_folders() == []
    assert server.uploads() == []


# --- devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_devices_are_the_first_and_all(server: Server, slash: str) -> None:
    answer = server.http.get(f"{DEVICE}{slash}")

    assert answer.json() == {"device": "cpu", "devices": ["cpu"]}


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(
    "body",
    [{}, {"json": {"device": "cuda:9"}}, {"content": b"{not json"}, {"content": b"\0" * 5000}],
)
def test_a_put_chooses_the_device_and_ignores_its_body(
    server: Server, slash: str, body: dict[str, Any]
) -> None:
    answer = server.http.put(f"{DEVICE}/cpu{slash}", **body)

    assert answer.status_code == 200, answer.text
    assert answer.json() == {"device": "cpu", "devices": ["cpu"]}


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpu,cuda:99", "%20", "cpu%00", "CPU", "..."])
def test_a_device_that_is_not_there_is_refused_and_changes_nothing(
    server: Server, device: str
) -> None:
    answer = server.http.put(f"{DEVICE}/{device}")

    check(answer, 422, "invalid-parameter", server)
    assert "cpu" in answer.json()["detail"]
    assert server.http.get(DEVICE).json() == {"device": "cpu", "devices": ["cpu"]}
    assert server.infer().status_code == 200


def kept(server: Server) -> Any:
    return json.loads((server.workspace / "state.json").read_bytes())["devices"]


def test_a_chosen_device_is_kept_across_a_restart_until_auto_gives_the_settings_back(
    start_server: StartServer,
) -> None:
    server = start_server(devices="auto")
    setting = server.http.get(DEVICE).json()
    assert setting["devices"] == list(devices.choose("auto", devices.available()))
    assert server.http.put(f"{DEVICE}/cpu").json() == {"device": "cpu", "devices": ["cpu"]}
    assert kept(server) == "cpu"
    server.stop()

    server = start_server(devices="auto", workspace=server.workspace)
    assert server.http.get(DEVICE).json() == {"device": "cpu", "devices": ["cpu"]}
    assert server.http.put(f"{DEVICE}/auto").json() == setting
    assert kept(server) is None


def test_a_kept_device_that_has_vanished_is_warned_of_and_forgotten(
    start_server: StartServer,
) -> None:
    server = start_server()
    server.http.put(f"{DEVICE}/cpu")
    server.stop()
    state = server.workspace / "state.json"
    state.write_text(state.read_text().replace('"cpu"', '"cuda:99"'))

    following = start_server(workspace=server.workspace)

    assert following.http.get(DEVICE).json() == {"device": "cpu", "devices": ["cpu"]}
    (warning,) = [line for line in following.log.read_text().splitlines() if "WARNING" in line]
    assert "'cuda:99' is not available" in warning
    assert kept(following) is None
    assert following.infer().status_code == 200


@pytest.mark.parametrize("state", ["{", "[]", '{"devices": ""}'])
def test_a_damaged_state_does_not_prevent_a_start(
    start_server: StartServer, tmp_path: Path, state: str
) -> None:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "state.json").write_text(state)

    server = start_server()

    assert server.http.get(DEVICE).json() == {"device": "cpu", "devices": ["cpu"]}
    assert server.http.put(f"{DEVICE}/cpu").status_code == 200
    assert kept(server) == "cpu"


# --- browsers --------------------------------------------------------------------------------


def test_no_origin_is_let_in_by_default(server: Server) -> None:
    answer = server.http.get("/about", headers={"Origin": "https://viewer.test"})

    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_origins_of_the_settings_are_let_in_and_may_read_the_job(
    start_server: StartServer,
) -> None:
    server = start_server(cors_origins="https://viewer.test, https://other.test")

    def asked(origin: str, method: str = "GET", **headers: str) -> httpx.Response:
        return server.http.request(method, "/about", headers={"Origin": origin, **headers})

    for origin in ("https://viewer.test", "https://other.test"):
        answer = asked(origin)
        assert answer.headers["access-control-allow-origin"] == origin
        assert "X-Pfms-Job" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in asked("https://evil.test").headers
    preflight = asked(
        "https://viewer.test", "OPTIONS", **{"Access-Control-Request-Method": "DELETE"}
    )
    assert preflight.status_code == 200
    assert "DELETE" in preflight.headers["access-control-allow-methods"]


PAGE = "https://viewer.test"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "{url}"}, 200),
        ({"Origin": "{url}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://behind.a.proxy", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": PAGE}, 200),
        ({"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Origin": "https://evil.test"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://evil.test", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "https://evil.viewer.test", "Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_a_page_of_another_origin_changes_nothing(
    pages_server: Server, headers: dict[str, str], status: int
) -> None:
    headers = {name: value.format(url=pages_server.url) for name, value in headers.items()}
    before = pages_server.job_folders()
    answer = pages_server.infer(headers=headers)

    assert answer.status_code == status
    if status == 403:
        check(answer, 403, "forbidden", pages_server)
        assert pages_server.job_folders() == before
    assert pages_server.http.get("/about", headers=headers).status_code == 200


@pytest.fixture(scope="module")
def pages_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    workspace = tmp_path_factory.mktemp("pages-server") / "workspace"
    seed_model(workspace)
    one = start(workspace, cors_origins=PAGE)
    yield one
    one.stop()


def test_devices_may_be_chosen_by_many_at_once(start_server: StartServer) -> None:
    server = start_server()
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda _: server.http.put(f"{DEVICE}/cpu"), range(40)))

    assert {answer.status_code for answer in answers} == {200}
    kept = json.loads((server.workspace / "state.json").read_text())
    assert kept["devices"] == "cpu"
    assert list(server.workspace.glob(".*.part")) == []


# --- the workspace ---------------------------------------------------------------------------


def calls_of(server: Server, job_id: str) -> Iterator[httpx.Response]:
    """Every call that looks into the workspace."""
    yield server.infer(headers={"Prefer": "respond-async"})
    yield server.infer(headers={"Idempotency-Key": "k"})
    yield server.http.post("/spleenseg/modelpth?modelID=x", files={"file": b"no weights"})
    yield server.http.get("/spleenseg/modelpth")
    yield server.http.get("/spleenseg/modelpth/demo")
    yield server.http.put(f"{DEVICE}/cpu")
    yield server.http.get("/jobs")
    paths = ("", "/log", "/result", "/volume", "/preview.png", "/bundle", "/bundle?voxels=true")
    for path in paths:
        yield server.http.get(f"/jobs/{job_id}{path}")
    yield server.http.post(f"/jobs/{job_id}/cancel")
    yield server.http.post(f"/jobs/{job_id}/rerun")
    yield server.http.delete(f"/jobs/{job_id}?purge=voxels")
    yield server.http.delete("/spleenseg/modelpth/demo")
    yield server.http.delete(f"/jobs/{job_id}")


def check_never_internal(server: Server, job_id: str) -> None:
    """No call says that it is a fault of pfms, or names a path."""
    for answer in calls_of(server, job_id):
        assert str(server.workspace) not in answer.text
        if answer.status_code >= 400:
            assert answer.json()["code"] != "internal", (answer.request.url, answer.text)


def missing(server: Server) -> dict[str, str]:
    ready = server.http.get(f"{server.url}/health/ready")
    assert ready.status_code == (503 if ready.json()["missing"] else 200), ready.text
    found: dict[str, str] = ready.json()["missing"]
    return found


def test_a_workspace_that_was_removed_is_what_is_missing(start_server: StartServer) -> None:
    server = start_server()
    job_id = server.ended(server.submit())["id"]
    log = server.log.rename(server.workspace.parent / "server.log")
    shutil.rmtree(server.workspace)

    assert missing(server) == {"workspace": "the folder uploads of the workspace is not there"}
    refusal = server.infer()
    assert (refusal.status_code, refusal.json()["code"]) == (503, "not-ready")
    assert "No such file or directory" in refusal.json()["detail"]
    assert "/health/ready" in refusal.json()["remedy"]
    assert "retry-after" in refusal.headers
    check_never_internal(server, job_id)
    assert server.stop() == 0
    assert "Traceback" in log.read_text()  # for the operator, who has to find out


@pytest.mark.parametrize("name", ["uploads", "models", "jobs"])
def test_a_folder_of_the_workspace_that_was_removed_is_named(
    start_server: StartServer, name: str
) -> None:
    server = start_server()
    job_id = server.ended(server.submit())["id"]
    shutil.rmtree(server.workspace / name)

    assert missing(server) == {"workspace": f"the folder {name} of the workspace is not there"}
    check_never_internal(server, job_id)


def test_a_workspace_that_may_not_be_written_to_is_what_is_missing_until_it_may(
    start_server: StartServer,
) -> None:
    prefix: Sequence[str] = ()
    if os.geteuid() == 0:  # no permission binds root, until this right is taken away
        prefix = working("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    server = start_server(prefix=prefix)
    job_id = server.ended(server.submit())["id"]
    folders = [server.workspace / name for name in ("uploads", "models", "jobs")]
    try:
        for folder in folders:
            folder.chmod(0o555)
        assert missing(server) == {
            "workspace": "the folder uploads of the workspace cannot be read and written"
        }
        refusal = server.infer()
        assert (refusal.status_code, refusal.json()["code"]) == (503, "not-ready"), refusal.text
        assert "Permission denied" in refusal.json()["detail"]
        assert server.http.get(f"/jobs/{job_id}/result").status_code == 200
        check_never_internal(server, job_id)
    finally:
        for folder in folders:
            folder.chmod(0o770)
    assert missing(server) == {}
    assert server.infer().status_code in (200, 404)  # the model may have been removed
