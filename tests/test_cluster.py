"""`PFMS_EXECUTOR=ray` with a server: what a cluster adds, and what it survives.

The contract of executors is in test_executors.py.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from examples.phantoms import make_phantom
from pfms.errors import StartError
from pfms.executors.choice import make_executor
from pfms.metrics import Metrics
from pfms.plugin.command import resolve_command
from pfms.settings import load_settings
from tests.cluster import a_cluster, add_node
from tests.conftest import (
    PLUGINS,
    ROOT,
    Server,
    StartServer,
    eventually,
    image_of,
    nifti_bytes,
)
from tests.test_proxy import free_port

pytestmark = pytest.mark.timeout(300)

DEVICE = "/spleenseg/inference/device"
LONG = 90.0  # seconds for Ray to notice that a node is dead


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with a_cluster() as one:
        yield one


@pytest.fixture
def on_ray(start_server: StartServer, tmp_path: Path) -> Callable[..., Server]:
    """Start a server that uses a cluster, and wait until it can."""

    def begin(cluster: Any, plugin: str | Path = "ok.py", **settings: Any) -> Server:
        given = {
            "executor": "ray",
            "ray_address": cluster.address,
            "ray_scratch": tmp_path / "scratch",
            "insecure": True,
        }
        server = start_server(plugin, **{**given, **settings})
        eventually(lambda: readiness(server) == {}, LONG)
        return server

    return begin


def readiness(server: Server) -> dict[str, str]:
    """What keeps it from being ready."""
    missing: dict[str, str] = httpx.get(f"{server.url}/health/ready").json().get("missing", {})
    return missing


def ended(server: Server, job_id: str) -> bool:
    return bool(server.job(job_id)["ended_at"])


def any_runs(server: Server, jobs: list[str]) -> bool:
    return any(server.job(job)["state"] in ("running", "succeeded") for job in jobs)


def devices(server: Server) -> list[str]:
    return list(server.http.get(DEVICE).json()["devices"])


def processes_of(*job_ids: str) -> list[psutil.Process]:
    """Those that work in the folders of runs, on any node."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).name in job_ids:
                found.append(process)
    return found


def until_it_runs(server: Server, job_id: str) -> psutil.Process:
    """A process of its run, once that has printed something, which is then in its log."""
    log = server.workspace / "jobs" / job_id / "plugin.log"
    eventually(lambda: log.exists() and log.read_text())
    return processes_of(job_id)[0]


def actor_of(process: psutil.Process) -> psutil.Process:
    """The actor, a process of Ray, that has a run's process among its descendants."""
    return next(each for each in process.parents() if each.name().startswith("ray::"))


def raylet_of(process: psutil.Process) -> psutil.Process:
    return next(each for each in process.parents() if each.name() == "raylet")


def kill_a_node_of(*job_ids: str) -> bool:
    """Kill a node on which one of them runs; whether there was one."""
    for process in processes_of(*job_ids):
        with suppress(psutil.Error, StopIteration):  # that run has just ended
            raylet_of(process).kill()
            return True
    return False


def is_left(scratch: Path) -> bool:
    """Whether any file of a run is on a node."""
    return any(path.is_file() for path in scratch.rglob("*"))


def test_a_job_on_a_node_leaves_the_folder_of_a_job_here_and_names_the_node(
    cluster: Any, on_ray: Callable[..., Server], start_server: StartServer, tmp_path: Path
) -> None:
    there = on_ray(cluster)
    here = start_server(workspace=tmp_path / "local", executor="warm")
    eventually(lambda: len(devices(there)) == 2, LONG)
    names = devices(there)
    assert all(name.endswith("/cpu") for name in names)

    content = nifti_bytes()
    ids = [(each, each.infer(content).headers["x-pfms-job"]) for each in (there, here)]

    files: list[dict[str, bytes]] = []
    records: list[dict[str, Any]] = []
    for server, job_id in ids:
        root = server.workspace / "jobs" / job_id
        found = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
        records.append(json.loads(found.pop("job.json").read_text()))
        files.append({name: path.read_bytes() for name, path in found.items()})
        modes = {name: path.stat().st_mode for name, path in found.items()}
        files[-1] |= {f"mode of {name}": str(mode).encode() for name, mode in modes.items()}
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []
    far, near = records
    assert far["device"] in names
    assert far["node"] == far["device"].partition("/")[0]
    assert far["versions"] == near["versions"]
    of_the_place = {"device", "executor", "node"}
    of_the_run = {"id", "created_at", "started_at", "ended_at", "seconds", "peak_memory_bytes"}
    of_the_run |= {"environment", "traceparent"}
    differing = {name for name in far.keys() | near.keys() if far.get(name) != near.get(name)}
    assert differing - of_the_run == of_the_place
    eventually(lambda: not is_left(tmp_path / "scratch"))


def test_a_cancel_ends_the_run_on_its_node(
    cluster: Any, on_ray: Callable[..., Server], tmp_path: Path
) -> None:
    server = on_ray(cluster, "ignores_term.py")
    job_id = server.submit()
    actor = actor_of(until_it_runs(server, job_id))
    assert server.http.post(f"/jobs/{job_id}/cancel").status_code in (200, 202)
    assert server.ended(job_id)["state"] == "cancelled"
    assert processes_of(job_id) == []
    assert not is_left(tmp_path / "scratch")
    assert actor.is_running(), "it keeps the plugin ready"


@pytest.mark.every  # half a minute
def test_a_run_whose_actor_is_killed_runs_again(
    cluster: Any, on_ray: Callable[..., Server], tmp_path: Path
) -> None:
    server = on_ray(cluster, "waits.py")
    job_id = server.submit()
    first = until_it_runs(server, job_id)
    actor_of(first).kill()
    job = server.ended(job_id)
    assert job["state"] == "succeeded", job
    assert not first.is_running()
    server.stop()
    eventually(lambda: list((tmp_path / "scratch").glob("*/*")) == [])


def test_what_keeps_a_server_from_a_cluster_is_told_and_jobs_wait(
    start_server: StartServer,
) -> None:
    server = start_server(executor="ray", ray_address="127.0.0.1:9", insecure=True)
    assert readiness(server).keys() == {"cluster-unreachable"}
    assert server.http.get(DEVICE).json()["code"] == "no-device"
    job_id = server.submit()
    assert server.job(job_id)["state"] == "queued"
    assert server.http.post(f"/jobs/{job_id}/cancel").status_code in (200, 202)


def test_a_cluster_that_asks_for_no_token_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    settings = load_settings(executor="ray", ray_address="head.example:6379", workspace=tmp_path)
    command = resolve_command(str(PLUGINS / "ok.py"))
    with pytest.raises(StartError, match="without token authentication"):
        make_executor(settings, command, Metrics())
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert make_executor(settings, command, Metrics()).name == "ray"


# --- what takes longer than CI has time for ------------------------------------------------------


@pytest.mark.every
def test_a_node_that_dies_costs_a_retry_elsewhere_and_no_attempt(
    on_ray: Callable[..., Server],
) -> None:
    with a_cluster() as cluster:
        server = on_ray(cluster, "waits.py", max_attempts=1)
        jobs = [server.submit() for _ in range(4)]
        first = until_it_runs(server, jobs[0])
        raylet_of(first).kill()
        eventually(lambda: all(server.job(job)["ended_at"] for job in jobs), LONG)
        for job in map(server.job, jobs):
            assert (job["state"], job["attempts"]) == ("succeeded", 1), job
        assert not first.is_running()
        assert len(devices(server)) == 1


@pytest.mark.every
@pytest.mark.timeout(900)
def test_ten_nodes_that_die_under_load_cost_no_job(on_ray: Callable[..., Server]) -> None:
    with a_cluster(3) as cluster:
        server = on_ray(cluster, "waits.py", max_attempts=1)
        jobs = [server.submit(nifti_bytes(seed=n)) for n in range(60)]
        for _ in range(10):
            eventually(partial(kill_a_node_of, *jobs), LONG)
            add_node(cluster)
        for job_id in jobs:
            eventually(partial(ended, server, job_id), 2 * LONG)
            job = server.job(job_id)
            assert (job["state"], job["attempts"]) == ("succeeded", 1), job
            log = server.workspace / job["folder"] / "plugin.log"
            assert log.read_text().count("waiting") == 1
        assert processes_of(*jobs) == []


@pytest.mark.every
def test_nodes_that_come_and_go_are_used_and_released(on_ray: Callable[..., Server]) -> None:
    with a_cluster(1) as cluster:
        server = on_ray(cluster)
        assert len(devices(server)) == 1
        second = add_node(cluster)
        eventually(lambda: len(devices(server)) == 2, LONG)
        jobs = [server.submit(nifti_bytes(seed=n)) for n in range(6)]
        used = {server.ended(job)["device"] for job in jobs}
        assert used == set(devices(server))
        cluster.remove_node(second)
        eventually(lambda: len(devices(server)) == 1, LONG)
        assert server.infer().status_code == 200
        cluster.remove_node(cluster.worker_nodes.copy().pop())
        eventually(lambda: "cluster-empty" in readiness(server), LONG)
        waiting = server.submit()
        add_node(cluster)
        eventually(lambda: server.job(waiting)["ended_at"], LONG)
        assert server.job(waiting)["state"] == "succeeded"


@pytest.mark.every
def test_a_head_that_is_gone_turns_ready_to_503_and_jobs_wait_for_the_next(
    on_ray: Callable[..., Server],
) -> None:
    port = free_port()
    with a_cluster(1, port) as cluster:
        server = on_ray(cluster, "waits.py", max_attempts=1)
        running = server.submit()
        until_it_runs(server, running)
        cluster.head_node.kill_gcs_server()
        eventually(lambda: "cluster-unreachable" in readiness(server), LONG)
        waiting = server.submit()
    with a_cluster(1, port):
        for job_id in (running, waiting):
            eventually(partial(ended, server, job_id), 2 * LONG)
            assert server.job(job_id)["state"] == "succeeded", server.job(job_id)
        assert readiness(server) == {}


@pytest.mark.every
def test_a_server_that_is_killed_leaves_nothing_and_runs_its_jobs_again(
    cluster: Any, on_ray: Callable[..., Server], tmp_path: Path
) -> None:
    server = on_ray(cluster, "waits.py", max_attempts=20)
    jobs = [server.submit(nifti_bytes(seed=n)) for n in range(20)]
    for _ in range(10):
        eventually(partial(any_runs, server, jobs))
        time.sleep(0.5)
        running = processes_of(*jobs)
        own = psutil.Process(server.process.pid).children()
        drivers = [each for each in own if "pfms.cluster" in each.cmdline()]
        server.stop(SIGKILL)
        _, alive = psutil.wait_procs([*drivers, *running], 20)
        assert alive == []
        eventually(lambda: not is_left(tmp_path / "scratch"))
        server = on_ray(cluster, "waits.py", max_attempts=20)
    for job_id in jobs:
        eventually(partial(ended, server, job_id), LONG)
        assert server.job(job_id)["state"] == "succeeded"


@pytest.mark.every
def test_a_node_with_another_version_is_refused_and_named(
    on_ray: Callable[..., Server], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    facts = other / "monai-0.0.1.dist-info" / "METADATA"
    facts.parent.mkdir(parents=True)
    facts.write_text("Metadata-Version: 2.1\nName: monai\nVersion: 0.0.1\n")
    with a_cluster(1) as cluster:
        server = on_ray(cluster)
        add_node(cluster, env_vars={"PYTHONPATH": str(other)})
        eventually(lambda: "monai 0.0.1" in server.log.read_text(), LONG)
        assert len(devices(server)) == 1


@pytest.mark.every
@pytest.mark.real
@pytest.mark.timeout(300)
def test_the_voxels_of_a_node_are_those_of_this_machine(
    cluster: Any, on_ray: Callable[..., Server], real_server: Server
) -> None:
    server = on_ray(cluster, "spleenseg")
    with (ROOT / "examples" / "demo_model.pth").open("rb") as file:
        answer = server.http.post(
            "/spleenseg/modelpth/", params={"modelID": "real"}, files={"file": file}, timeout=120
        )
    assert answer.status_code == 200, answer.text
    volume = make_phantom(7).volume.to_bytes()
    far = server.infer(volume, "real", timeout=300)
    near = real_server.infer(volume, timeout=300)
    assert (far.status_code, near.status_code) == (200, 200), far.text
    np.testing.assert_array_equal(
        np.asanyarray(image_of(far.content).dataobj), np.asanyarray(image_of(near.content).dataobj)
    )
    jobs = [one.http.get("/jobs").json()["jobs"][0] for one in (server, real_server)]
    voxels = [job["segmentation"]["voxels_sha256"] for job in jobs]
    assert voxels[0] == voxels[1]
