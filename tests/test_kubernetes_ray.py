"""What Kubernetes gets for `PFMS_EXECUTOR=ray`: built by kubectl, checked, without a cluster."""

import json
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import pytest
from kubernetes_validate import validate  # type: ignore[import-untyped]

from tests import image
from tests.conftest import ROOT, eventually
from tests.test_image import A_RANDOM_USER, needs_root
from tests.test_kubernetes import (
    A_RANDOM_GROUP,
    ALLOWED_VOLUMES,
    VERSIONS,
    Document,
    built,
    needs_kubectl,
    only,
    pod_of,
    settings_of,
)
from tests.test_proxy import free_port
from tests.test_ray_units import LOCALHOST, needs_ray, status

A_RAY_POD = {"ray.io/cluster": "pfms-ray"}
TOKEN = {"secretKeyRef": {"name": "pfms-ray", "key": "auth_token"}}

pytestmark = needs_kubectl


def cluster() -> Document:
    spec: Document = only(built("ray"), "RayCluster")["spec"]
    return spec


def groups() -> list[Document]:
    """The head, then the workers."""
    return [cluster()["headGroupSpec"], *cluster()["workerGroupSpecs"]]


def container_of(group: Document) -> Document:
    [container] = group["template"]["spec"]["containers"]
    found: Document = container
    return found


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 2**20, "Gi": 2**30}[unit]


def test_the_pods_of_the_cluster_are_what_kubernetes_understands() -> None:
    for group in groups():
        as_pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "of-ray"}}
        for version in VERSIONS:
            validate({**as_pod, "template": group["template"]}, version, strict=True)


def test_ray_has_the_options_that_a_node_is_started_with() -> None:
    pytest.importorskip("ray")
    for role, group in zip(("--head", "--address=head:6379"), groups(), strict=False):
        params = " ".join(f"--{name}={text}" for name, text in group["rayStartParams"].items())
        line = params.replace("--disable-usage-stats=true", "--disable-usage-stats")
        # With `--help`, ray refuses an option that it does not have, and starts nothing.
        started = [sys.executable, "-m", "ray.scripts.scripts", "start", role, *shlex.split(line)]
        done = subprocess.run([*started, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_pfms_finds_the_cluster_and_has_its_token() -> None:
    documents = built("ray")
    settings, name = settings_of(documents), only(documents, "RayCluster")["metadata"]["name"]
    head, *workers = groups()
    assert settings["PFMS_EXECUTOR"] == "ray"
    [port] = [each["containerPort"] for each in container_of(head)["ports"]]
    assert settings["PFMS_RAY_ADDRESS"] == f"{name}-head-svc:{port}"
    assert int(settings["PFMS_RAY_SLOTS"]) == sum(each["maxReplicas"] for each in workers)
    environments = [
        pod_of(documents)["spec"]["containers"][0]["env"],
        cluster()["autoscalerOptions"]["env"],
        *(container_of(group)["env"] for group in groups()),
    ]
    for environment in environments:
        assert environment == [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": TOKEN},
        ]


def test_every_node_has_the_image_and_the_ray_of_pfms() -> None:
    image = pod_of(built("ray"))["spec"]["containers"][0]["image"]
    assert {container_of(group)["image"] for group in groups()} == {image}
    assert f"ray=={cluster()['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_nobody_but_pfms_and_the_cluster_itself_reaches_a_node() -> None:
    policies = [each["spec"] for each in built("ray") if each["kind"] == "NetworkPolicy"]
    of_ray = [each for each in policies if each["podSelector"]["matchLabels"] == A_RAY_POD]
    [policy] = of_ray
    of_pfms = only(built("ray"), "NetworkPolicy", "pfms")["spec"]["podSelector"]
    [rule] = policy["ingress"]
    assert rule == {"from": [{"podSelector": {"matchLabels": A_RAY_POD}}, {"podSelector": of_pfms}]}
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_the_head_runs_nothing_and_has_no_dashboard() -> None:
    head = groups()[0]["rayStartParams"]
    assert (head["num-cpus"], head["num-gpus"]) == ("0", "0")
    assert head["include-dashboard"] == "false"


def test_workers_come_when_a_job_waits_for_a_gpu_and_go() -> None:
    [gpu] = groups()[1:]
    assert cluster()["enableInTreeAutoscaling"]
    assert gpu["minReplicas"] == 0 < gpu["maxReplicas"]
    params, resources = gpu["rayStartParams"], container_of(gpu)["resources"]
    assert int(params["num-gpus"]) == resources["limits"]["nvidia.com/gpu"]
    [quoted] = shlex.split(params["resources"])
    assert json.loads(quoted)["pfms"] >= 1
    promised = int(params["memory"]) + int(params["object-store-memory"])
    assert promised + size("2Gi") == size(resources["limits"]["memory"])


@pytest.mark.parametrize("role", ["head", "worker"])
def test_a_node_asks_for_no_more_than_the_profile_restricted_allows(role: str) -> None:
    group = groups()[role == "worker"]
    pod: dict[str, Any] = group["template"]["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    confined = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container_of(group)["securityContext"] == confined
    assert cluster()["autoscalerOptions"]["securityContext"] == confined
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", *ALLOWED_VOLUMES}
    assert pod.get("automountServiceAccountToken") is (False if role == "worker" else None)
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    mounts = {each["mountPath"]: each["name"] for each in container_of(group)["volumeMounts"]}
    assert "/tmp" in mounts
    shared = volumes[mounts["/dev/shm"]]
    assert shared["medium"] == "Memory"
    assert size(shared["sizeLimit"]) > int(group["rayStartParams"]["object-store-memory"])


@contextmanager
def pod(made: image.Image, role: str, group: Document, token: str, log: Path) -> Iterator[None]:
    """A node in the image, started as KubeRay starts it, until it has been stopped."""
    params = " ".join(f"--{name}={text}" for name, text in group["rayStartParams"].items())
    params = params.replace("--disable-usage-stats=true", "--disable-usage-stats")
    started = f"ulimit -n 65536; exec ray start {role} {params} --block"
    made.writable = tuple(each["mountPath"] for each in container_of(group)["volumeMounts"])
    env = {**made.env, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with log.open("wb") as output:
        argv = made.argv(["bash", "-c", started], A_RANDOM_USER)
        process = subprocess.Popen(argv, env=env, stdout=output, stderr=output)
    try:
        yield
    finally:
        nodes = psutil.Process(process.pid).children(recursive=True)
        process.terminate()  # upon which it ends the others
        process.wait(30)
        _, left = psutil.wait_procs(nodes, 10)
        for each in left:
            each.kill()
        assert left == []


# A build of the image, and two nodes of Ray: CI leaves it out.
@pytest.mark.every
@needs_ray
@needs_root
def test_head_and_worker_find_each_other_as_pods_would_run_the_image(tmp_path: Path) -> None:
    token, port = secrets.token_hex(32), free_port()
    tmp_path.chmod(0o755)
    made = image.Image(tmp_path / "image", groups=(A_RANDOM_GROUP,))
    made.root.mkdir()
    made.build()
    head, worker = deepcopy(groups())
    worker["rayStartParams"]["node-manager-port"] = str(free_port())
    here = f"--node-ip-address={LOCALHOST}"
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    logs = tmp_path / "head.log", tmp_path / "worker.log"
    with (
        pod(made, f"--head --port={port} {here}", head, token, logs[0]),
        pod(made, f"--address={LOCALHOST}:{port} {here}", worker, token, logs[1]),
    ):
        eventually(lambda: "/1000.0 pfms" in status(port, known).stdout, seconds=90)
        said = status(port, known).stdout
    assert "/1.0 GPU" in said
    assert "/4.0 CPU" in said
