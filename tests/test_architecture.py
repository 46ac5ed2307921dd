"""The shape of the house: what may import what, and what may never be where."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pfms
from pfms import errors
from pfms.api import problems
from tests.conftest import ROOT, nifti_bytes, seed_model, start

PFMS = Path(pfms.__file__).parent
HEAVY = ("torch", "monai", "spleenseg", "matplotlib", "scipy", "skimage", "pandas")
CHILD_PROGRAMS = {
    "pfms.programs.weights_child",
    "pfms.programs.warm_adaptations",
    "pfms.programs.warm_kernels",
    "pfms.programs.warm_parent",
    "pfms.programs.warm_plugin",
    "pfms.programs.warm_volumes",
}

# From the roof down: a module imports from its own storey and from those below it.
STOREYS = (
    "__main__",
    "cli",
    "commands",
    "local",
    "server",
    "api",
    "service",
    "jobs",
    "cluster",
    "executors",
    "models",
    "processes",
    "volumes",
    "access",
    "storage",
    "settings",
    "metrics",
    "plugin",
    "client",
    "hosts",
    "logs",
    "spans",
    "trace",
    "clock",
    "aio",
    "errors",
    "programs",
)
ABOVE_THE_JOBS = STOREYS[: STOREYS.index("jobs")]
PURE = (
    "plugin.spleenseg",
    "plugin.memory",
    "volumes.memory",
    "plugin.adaptations",
    "plugin.verdict",
    "plugin.command_script",
    "plugin.python_settings",
    "jobs.queue",
    "jobs.estimates",
    "errors",
    "volumes.not_nifti",
    "volumes.sniff",
    "access.caller",
    "access.limits",
    "trace",
)
TOUCHES = {"os", "shutil", "subprocess", "socket", "asyncio", "tempfile", "glob", "io", "psutil"}


def imports_of(path: Path, *, late: bool) -> set[str]:
    """What a module imports, in full; with `late` also inside of functions."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    nodes = ast.walk(tree) if late else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PFMS.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in PFMS.rglob("*.py")}


def ours(name: str, *, late: bool) -> set[str]:
    """The modules of pfms that a module of pfms imports."""
    return (imports_of(MODULES[name], late=late) & MODULES.keys()) - {name, "pfms"}


def storey_of(name: str) -> str:
    """The part of a module's name that says where in the house it is."""
    return name.split(".")[1]


@pytest.mark.parametrize("module", ["pfms.api.app", "pfms.server", "pfms.cli"])
def test_a_fresh_interpreter_imports_the_service_without_anything_heavy(module: str) -> None:
    program = f"import {module}, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()

    assert module in loaded
    heavy = [name for name in loaded if name.partition(".")[0] in HEAVY]
    # nibabel looks whether there is a scipy by importing its outermost module: 4 ms.
    assert [name for name in heavy if not re.match(r"scipy($|\._|\.version$)", name)] == []


def test_only_the_child_programs_name_torch_and_the_plugin_in_an_import() -> None:
    heavy = {
        name
        for name, path in MODULES.items()
        if {each.partition(".")[0] for each in imports_of(path, late=True)} & set(HEAVY)
    }

    assert heavy - {"pfms.local.compare"} <= CHILD_PROGRAMS  # which needs scipy
    assert "pfms.programs.weights_child" in heavy


def test_no_module_imports_itself_by_any_detour() -> None:
    graph = {name: ours(name, late=False) for name in MODULES}

    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


def test_every_module_has_a_storey_and_every_storey_a_module() -> None:
    assert {storey_of(name) for name in MODULES if name != "pfms"} == set(STOREYS)


def test_the_documentation_shows_every_module_in_its_place() -> None:
    shown: set[str] = set()
    page = (ROOT / "docs" / "architecture.md").read_text()
    for row in re.findall(r"^\| (`.+?) \|(.*?)\| .+ \|$", page.partition("## The way")[0], re.M):
        storeys, modules = (re.findall(r"`([^`]+)`", cell) for cell in row)
        shown |= {f"pfms.{name}" for name in storeys if not name.endswith("/")}
        package = next((name for name in storeys if name.endswith("/")), "")
        shown |= {f"pfms.{package.replace('/', '.')}{name}" for name in modules}
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}

    assert shown == MODULES.keys() - packages - {"pfms.__main__"}


def test_imports_run_downward_only() -> None:
    upward = [
        f"{name} imports {other}"
        for name in MODULES
        for other in ours(name, late=True)
        if STOREYS.index(storey_of(other)) < STOREYS.index(storey_of(name))
    ]

    assert upward == []


@cache
def defined_in(path: Path) -> set[str]:
    """The names that a module defines itself, at its top."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def test_a_name_is_imported_from_the_module_that_defines_it() -> None:
    elsewhere = []
    for path in (*MODULES.values(), *Path(__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.module not in MODULES:
                continue
            if node.module in ("pfms", "pfms.client"):  # what other programs import
                continue
            names = {
                each.name for each in node.names if f"{node.module}.{each.name}" not in MODULES
            }
            for name in names - defined_in(MODULES[node.module]):
                elsewhere.append(f"{path.name} imports {name} from {node.module}")

    assert elsewhere == []


def test_what_lies_below_the_service_knows_nothing_of_http() -> None:
    for name in MODULES:
        if name != "pfms" and storey_of(name) not in ABOVE_THE_JOBS:
            http = {"fastapi", "starlette", "uvicorn"} & imports_of(MODULES[name], late=True)
            assert http == set(), name


def test_the_service_knows_executors_by_their_interface_alone() -> None:
    kinds = {
        name
        for name in MODULES
        if name.startswith(
            tuple(f"pfms.executors.{kind}" for kind in ("fresh", "warm", "cluster", "stages"))
        )
    }
    # A node of a cluster has an executor of its own.
    for name in MODULES.keys() - kinds - {"pfms.executors.choice", "pfms.cluster.node"}:
        assert ours(name, late=True) & kinds == set(), name


@pytest.mark.parametrize("name", PURE)
def test_what_is_called_pure_touches_neither_files_nor_processes(name: str) -> None:
    imported = imports_of(MODULES[f"pfms.{name}"], late=True)

    assert {each.partition(".")[0] for each in imported} & TOUCHES == set()
    assert "pathlib.Path" not in imported


def test_every_error_has_a_status_and_a_code_of_its_own() -> None:
    def below(kind: type[errors.PfmsError]) -> list[type[errors.PfmsError]]:
        found = [leaf for sub in kind.__subclasses__() for leaf in below(sub)]
        return found or [kind]

    # What stops a start never reaches a client.
    kinds = [kind for kind in below(errors.PfmsError) if kind is not errors.StartError]
    assert {*kinds, errors.PfmsError} == set(problems.STATUS)
    codes = [kind.code for kind in problems.STATUS]
    assert len(set(codes)) == len(codes)
    for kind in kinds:
        assert errors.by_code(kind.code) is kind
        assert kind.title != errors.PfmsError.title, kind
        assert kind.remedy != errors.PfmsError.remedy, kind


# --- the event loop --------------------------------------------------------------------------

WATCHED = ("-m", "tests.watched_server")


def test_no_call_that_blocks_runs_on_the_event_loop(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    seed_model(workspace)
    server = start(workspace, program=WATCHED)
    volume = nifti_bytes((160, 160, 80), gzipped=False)  # 4 MB, and 30 MB one-hot
    try:
        job_id = server.infer(volume).headers["x-pfms-job"]
        keyed = server.infer(volume, headers={"Idempotency-Key": "k"})
        assert keyed.status_code == 200, keyed.text
        other = server.submit(volume, params={"resultant": "logits"})
        assert server.ended(other)["state"] == "succeeded"
        tails = ("", "/log", "/result", "/volume", "/preview.png", "/bundle?voxels=true", "/events")
        paths = [*(f"/jobs/{job_id}{tail}" for tail in tails), "/jobs", "/sysinfo", "/about"]
        paths += ["/spleenseg/modelpth", "/spleenseg/modelpth/demo", "/spleenseg/inference/device"]
        for path in (*paths, f"{server.url}/health/ready"):
            assert server.http.get(path).status_code == 200, path
        rerun = server.http.post(f"/jobs/{job_id}/rerun").json()["id"]
        server.http.post(f"/jobs/{rerun}/cancel")
        server.ended(rerun)
        for content in (b"no model", b"no volume"):
            for path in ("modelpth", "NIfTIinference"):
                answer = server.http.post(
                    f"/spleenseg/{path}", params={"modelID": "demo"}, files={"file": content}
                )
                assert answer.status_code == 422
        assert server.http.put("/spleenseg/inference/device/cpu").status_code == 200
        assert server.http.delete(f"/jobs/{job_id}?purge=voxels").status_code == 204
        assert server.http.delete(f"/jobs/{job_id}").status_code == 204
        assert server.http.delete("/spleenseg/modelpth/demo").status_code == 204
    finally:
        server.stop()

    said = server.log.read_text().splitlines()
    assert [line for line in said if line.startswith("BLOCKED")] == []


def test_a_user_without_a_home_costs_the_event_loop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))  # so each run makes sure of another one
    workspace = tmp_path / "workspace"
    seed_model(workspace)
    server = start(workspace, program=WATCHED)
    try:
        assert server.infer().status_code == 200
    finally:
        server.stop()

    assert (workspace / "home").is_dir()
    assert "BLOCKED" not in server.log.read_text()


def test_the_watch_over_the_event_loop_sees_what_blocks(tmp_path: Path) -> None:
    """Otherwise the test above could not fail."""
    program = f"""
import asyncio, os, time
from tests.watched_server import watch
async def main():
    await asyncio.to_thread(time.sleep, 0.01)
    await asyncio.to_thread(open, {str(tmp_path / "thread")!r}, "w")
    open({str(tmp_path / "loop")!r}, "w")
    time.sleep(0.01)
    os.scandir("/")
    end = time.thread_time() + 0.3
    while time.thread_time() < end: pass
watch()
asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    seen = [line.split()[1] for line in ended.stderr.splitlines() if line.startswith("BLOCKED")]
    assert seen[:3] == ["open", "time.sleep(0.01)", "os.scandir"]
    assert len(seen) == 4
    assert "s of CPU" in ended.stderr
    assert str(tmp_path / "thread") not in ended.stderr
