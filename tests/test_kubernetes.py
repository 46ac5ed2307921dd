"""What Kubernetes and OpenShift get: built by kubectl, checked, and started without a cluster."""

import json
import os
import re
import shlex
import shutil
import subprocess
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema_rs
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from pfms.settings import Settings
from tests import image, tokens
from tests.conftest import PLUGINS, ROOT, Server, eventually, seed_model
from tests.test_image import A_RANDOM_USER, listening, needs_root
from tests.test_proxy import free_port
from tests.test_server import folder_of, log_of

KUBERNETES = ROOT / "deploy" / "kubernetes"
# Of what a user takes together: these components.
VARIANTS: dict[str, tuple[str, ...]] = {
    "cpu": (),
    "gpu": ("gpu",),
    "openshift-cpu": ("openshift",),
    "openshift-gpu": ("gpu", "openshift"),
    "ray": ("ray",),  # more of it in tests/test_kubernetes_ray.py
    "openshift-ray": ("openshift", "ray"),
}
# Of kinds that are not Kubernetes' own.
SCHEMAS = {"Route": "route.schema.json", "RayCluster": "ray_cluster.schema.json"}
VERSIONS = ("1.25", "1.37")
A_RANDOM_GROUP = 1_000_650_000
# What OpenShift's restricted-v2 and the profile `restricted` of Kubernetes let a pod mount.
ALLOWED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None,  # no package of Debian has one that knows components
    reason="kubectl is not installed",
)
pytestmark = needs_kubectl

Document = dict[str, Any]


def build(folder: Path) -> list[Document]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


@cache
def built(variant: str) -> list[Document]:
    with TemporaryDirectory() as folder:
        base = os.path.relpath(KUBERNETES, Path(folder).resolve())
        components = [f"{base}/{name}" for name in VARIANTS[variant]]
        kustomization = {"resources": [base], "components": components}
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return build(Path(folder))


def only(documents: list[Document], kind: str, name: str = "") -> Document:
    """The one of a kind, or that of the name."""
    of_kind = [each for each in documents if each["kind"] == kind]
    [found] = [each for each in of_kind if name in ("", each["metadata"]["name"])]
    return found


def pod_of(documents: list[Document]) -> Document:
    pod: Document = only(documents, "Deployment")["spec"]["template"]
    return pod


def settings_of(documents: list[Document]) -> dict[str, str]:
    """The environment of the container, checked as the server would at its start."""
    pod, config = pod_of(documents)["spec"], only(documents, "ConfigMap")
    [source] = pod["containers"][0]["envFrom"]
    assert source == {"configMapRef": {"name": config["metadata"]["name"]}}
    data: dict[str, str] = config["data"]
    values: Document = {name.removeprefix("PFMS_").lower(): text for name, text in data.items()}
    Settings(**values)
    return data


def environment_of_the_image() -> dict[str, str]:
    last = image.stages((ROOT / "Dockerfile").read_text())[-1]
    [words] = [shlex.split(step.rest) for step in last if step.word == "ENV"]
    return dict(word.split("=", 1) for word in words)


def check(documents: list[Document]) -> None:
    """Hold them against the schemas of Kubernetes, OpenShift and KubeRay."""
    for document in documents:
        if name := SCHEMAS.get(document["kind"]):
            jsonschema_rs.validate(json.loads((ROOT / "tests" / name).read_text()), document)
        else:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_what_kubernetes_understands(variant: str) -> None:
    check(built(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_belongs_together_finds_each_other(variant: str) -> None:
    documents, of_the_image = built(variant), environment_of_the_image()
    pod, settings = pod_of(documents), settings_of(documents)
    labels = pod["metadata"]["labels"].items()
    [container] = pod["spec"]["containers"]
    [port] = container["ports"]

    service, policy = (
        only(documents, "Service")["spec"],
        only(documents, "NetworkPolicy", "pfms")["spec"],
    )
    assert service["selector"].items() <= labels
    assert policy["podSelector"]["matchLabels"].items() <= labels
    assert service["ports"][0]["targetPort"] == port["name"]
    assert policy["ingress"][0]["ports"] == [{"port": port["name"]}]
    assert int(of_the_image["PFMS_PORT"]) == port["containerPort"]
    claim = only(documents, "PersistentVolumeClaim")["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts[of_the_image["PFMS_WORKSPACE"]]["persistentVolumeClaim"]["claimName"] == claim
    assert "secret" in mounts[str(Path(settings["PFMS_TOKENS_FILE"]).parent)]
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert "emptyDir" in mounts["/tmp"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_workspace_has_one_server_which_gets_the_time_for_its_runs(variant: str) -> None:
    documents = built(variant)
    deployment, pod = only(documents, "Deployment")["spec"], pod_of(documents)["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    drain = Settings.model_fields["drain_seconds"].default
    assert pod["terminationGracePeriodSeconds"] >= drain + 15
    resources = pod["containers"][0]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pod_asks_for_no_more_than_the_profile_restricted_allows(variant: str) -> None:
    pod = pod_of(built(variant))["spec"]
    [container] = pod["containers"]
    chosen, of_container = pod["securityContext"], container["securityContext"]
    assert chosen["runAsNonRoot"]
    assert chosen["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", *ALLOWED_VOLUMES}
    assert pod["automountServiceAccountToken"] is False
    # Otherwise the Service `pfms` would set PFMS_PORT to tcp://...
    assert pod["enableServiceLinks"] is False
    # OpenShift chooses user and group from a range of the namespace's own, and refuses others.
    ours = {"runAsUser", "runAsGroup", "fsGroup"} & {*chosen, *of_container}
    assert ours == (set() if variant.startswith("openshift") else {"fsGroup"})


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_gpu_variants_ask_for_a_gpu(variant: str) -> None:
    documents = built(variant)
    limits = pod_of(documents)["spec"]["containers"][0]["resources"]["limits"]
    assert ("nvidia.com/gpu" in limits) == variant.endswith("gpu")


def seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def test_the_route_waits_for_a_run_and_leads_to_the_service() -> None:
    documents = built("openshift-gpu")
    route, service = only(documents, "Route"), only(documents, "Service")
    annotations, spec = route["metadata"]["annotations"], route["spec"]
    longest = Settings.model_fields["job_timeout_seconds"].default
    assert seconds(annotations["haproxy.router.openshift.io/timeout"]) > longest
    assert (spec["to"]["kind"], spec["to"]["name"]) == ("Service", service["metadata"]["name"])
    assert spec["port"]["targetPort"] == service["spec"]["ports"][0]["name"]
    assert spec["tls"]["termination"] == "edge"
    # The router calls from another namespace.
    peers = only(documents, "NetworkPolicy", "pfms")["spec"]["ingress"][0]["from"]
    assert {"policy-group.network.openshift.io/ingress": ""} in [
        peer["namespaceSelector"]["matchLabels"] for peer in peers if "namespaceSelector" in peer
    ]


def test_the_kustomization_that_the_documentation_shows_is_built(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "deploying.md").read_text()
    [shown] = re.findall(r"```yaml\n(# kustomization.yaml.+?)```", page, re.DOTALL)
    shutil.copytree(ROOT / "deploy", tmp_path / "pfms" / "deploy")
    own = tmp_path / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(shown)

    documents = build(own)
    check(documents)
    settings = settings_of(documents)
    [container] = pod_of(documents)["spec"]["containers"]
    assert container["image"] != "pfms"
    assert "pfms.clinic.example" in settings["PFMS_HOSTNAMES"].split(",")
    assert settings["PFMS_TOKENS_FILE"] == settings_of(built("gpu"))["PFMS_TOKENS_FILE"]
    assert len(only(documents, "NetworkPolicy", "pfms")["spec"]["ingress"][0]["from"]) == 2


@needs_root
@pytest.mark.parametrize("variant", ["cpu", "openshift-cpu"])
def test_the_image_works_as_the_pod_would_run_it(variant: str, tmp_path: Path) -> None:
    documents = built(variant)
    pod, settings = pod_of(documents)["spec"], settings_of(documents)
    [container] = pod["containers"]
    group = pod["securityContext"].get("fsGroup", A_RANDOM_GROUP)
    tmp_path.chmod(0o755)
    made = image.Image(tmp_path, groups=(group,))
    made.build()
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    made.writable = tuple(
        mount["mountPath"]
        for mount in container["volumeMounts"]
        if "emptyDir" in volumes[mount["name"]]
    )
    [mode] = [each["secret"]["defaultMode"] for each in volumes.values() if "secret" in each]
    token = secret(tmp_path, settings["PFMS_TOKENS_FILE"], group, mode)
    workspace = tmp_path / made.env["PFMS_WORKSPACE"].lstrip("/")
    seed_model(workspace)
    subprocess.run(["chgrp", "-R", str(group), workspace], check=True)  # as fsGroup does
    subprocess.run(["chmod", "-R", "g+rwX", workspace], check=True)
    made.env |= settings | {
        "PFMS_PORT": str(free_port()),
        "PFMS_MIN_FREE_BYTES": "0",
        "PFMS_DEVICES": "cpu",
        "PFMS_PLUGIN_COMMAND": str(PLUGINS / "reaches_out.py"),
    }

    argv = made.argv(made.command, A_RANDOM_USER)
    with listening(argv, made.env, tmp_path.with_suffix(".log"), workspace) as server:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = container[probe]["httpGet"]["path"]  # without a token, by an IP address
            eventually(partial(answers_well, server, path))
        assert server.infer().status_code == 401
        server.http.headers.update(tokens.bearer(token))
        job = server.submit()
        eventually(lambda: "groups" in log_of(server, job))
        said = log_of(server, job)
        (folder_of(server, job) / "end").touch()
        assert server.ended(job)["state"] == "succeeded", said

    assert "writes to /dev/shm /tmp /workspace\n" in said
    assert f"user {A_RANDOM_USER} groups 0 {group}\n" in said


def answers_well(server: Server, path: str) -> bool:
    return server.http.get(f"{server.url}{path}").status_code == 200


def secret(root: Path, path: str, group: int, mode: int) -> str:
    """A secret as Kubernetes mounts it: a link to a link to a file of root's; the token in it."""
    place = root / path.lstrip("/")
    data = place.parent / "..2026"
    data.mkdir(parents=True)
    token = tokens.add(data / place.name, "ward-3")
    (data / place.name).chmod(mode)
    os.chown(data / place.name, 0, group)
    (place.parent / "..data").symlink_to(data.name)
    place.symlink_to(Path("..data") / place.name)
    return token
