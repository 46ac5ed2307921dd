"""The image, as far as it can be seen without Docker: its files, its scripts, its last stage."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests import image
from tests.conftest import PLUGINS, ROOT, Server, eventually, seed_model
from tools import install

SCRIPTS = ("start.sh", "start-reload.sh")
A_RANDOM_USER, ANOTHER_USER = 1_000_650_000, 1_000_660_000  # OpenShift's are of this kind
WITHOUT_DISK_OR_GPU = {"PFMS_MIN_FREE_BYTES": "0", "PFMS_DEVICES": "cpu", "PFMS_EXECUTOR": "fresh"}

needs_root = pytest.mark.skipif(
    not image.can_be_carried_out(), reason="a chroot takes root, and `unshare --mount`"
)


def read(path: str) -> str:
    return (ROOT / path).read_text()


def sent_to_the_builder(path: str) -> bool:
    """As Docker reads .dockerignore: the last line that matches the path or a parent decides."""
    names = [path, *map(str, PurePosixPath(path).parents)][:-1]
    sent = True
    for line in read(".dockerignore").splitlines():
        pattern = line.removeprefix("!")
        if line.startswith("**/"):
            matches = any(fnmatch(PurePosixPath(name).name, line[3:]) for name in names)
        else:
            matches = any(
                fnmatch(name, pattern) for name in names if "/" not in name or "/" in pattern
            )
        if matches and not line.startswith("#"):
            sent = line.startswith("!")
    return sent


def copies() -> list[str]:
    steps = [step for stage in image.stages(read("Dockerfile")) for step in stage]
    return [source for step in steps if step.word == "COPY" for source in image.copied(step)[0]]


def test_all_that_the_dockerfile_copies_is_there_and_sent_to_the_builder() -> None:
    assert {"pfms", "tools/install.py", "docker/start.sh"} <= set(copies())
    for source in copies():
        assert (ROOT / source).exists(), source
        assert sent_to_the_builder(source), source
    assert sent_to_the_builder("pfms/api/app.py")


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", "workspace/pfms.db", "pfms/__pycache__/x.pyc"]
)
def test_nothing_private_or_large_is_sent_to_the_builder(path: str) -> None:
    assert not sent_to_the_builder(path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_start_script_is_proper_shell_and_may_be_executed(name: str) -> None:
    script = ROOT / "docker" / name
    checked = subprocess.run(["sh", "-n", script], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert os.access(script, os.X_OK)


def test_the_image_is_installed_by_the_step_that_make_takes() -> None:
    builder, _ = image.stages(read("Dockerfile"))
    [step] = [s.rest for s in builder if s.word == "RUN" and "tools/install.py" in s.rest]
    [extras] = [s.rest for s in builder if s.word == "ARG" and s.rest.startswith("EXTRAS=")]
    line = step[step.index("tools/install.py") :].replace("$EXTRAS", extras.partition("=")[2])
    options = install.arguments().parse_args(shlex.split(line)[1:])
    assert options.extras == "server,plugin"  # no development tools
    assert options.venv == Path("/opt/venv")
    assert "tools/install.py --torch-index" in read("Makefile")


def test_what_runs_and_checks_the_image_is_in_it() -> None:
    last = image.stages(read("Dockerfile"))[-1]
    steps = {step.word: step.rest for step in last}
    script = json.loads(steps["CMD"])[0]
    checker = json.loads(steps["HEALTHCHECK"].partition(" CMD ")[2])[-1]
    assert {f"docker{script}", f"docker{checker}"} <= set(copies())
    assert steps["USER"].endswith(":0")  # what OpenShift runs random users in
    assert steps["ENTRYPOINT"] == '["tini", "--"]'


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


@pytest.mark.parametrize("name", ["pfms", "cpu"])
def test_compose_gives_a_run_shared_memory_and_the_time_to_end(name: str) -> None:
    service: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))["services"][name]
    drain = int(re.findall(r"^PFMS_DRAIN_SECONDS=(\d+)$", read("config.env"), re.M)[0])
    assert seconds(service["stop_grace_period"]) >= drain + 10
    assert service["shm_size"] == "2gb"
    assert service["volumes"] == ["workspace:/workspace"]
    assert ("deploy" in service) == (name == "pfms")  # the GPU


@contextmanager
def listening(argv: list[str], env: dict[str, str], log: Path, workspace: Path) -> Iterator[Server]:
    """A server, from its line that names the URL until it has been stopped."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, env=env, cwd=log.parent, stdout=output, stderr=output, text=True
        )
    try:
        eventually(lambda: "pfms listens on " in log.read_text() or process.poll() is not None)
        found = re.search(r"pfms listens on http://[\d.]+:(\d+) ", log.read_text())
        assert found, log.read_text()
        server = Server(workspace, process, f"http://127.0.0.1:{found[1]}", log)
        try:
            yield server
        finally:
            server.stop()
    finally:
        process.kill()
        process.wait()


def test_a_saved_change_of_the_source_is_served(tmp_path: Path) -> None:
    app = tmp_path / "app"  # the mounted source, and the image's link to it
    shutil.copytree(ROOT / "pfms", app)
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv" / "pfms").symlink_to(app)
    workspace = tmp_path / "workspace"
    seed_model(workspace)
    own = {name: value for name, value in os.environ.items() if not name.startswith("PFMS_")}
    env = {
        **own,
        **WITHOUT_DISK_OR_GPU,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "srv"),
        "PFMS_PORT": "0",
        "PFMS_WORKSPACE": str(workspace),
        "PFMS_PLUGIN_COMMAND": str(PLUGINS / "hangs.py"),
    }
    argv = [str(ROOT / "docker" / "start-reload.sh")]
    with listening(argv, env, tmp_path / "log", workspace) as server:
        about = server.http.get("/about").json()["about"]
        job = server.submit()
        eventually(lambda: server.job(job)["state"] == "running")

        def edited() -> bool:
            # Again and again: the reloader knows a change by a file's time, once it has seen one.
            source = app / "api" / "system.py"
            source.write_text(source.read_text().replace(about, "edited"))
            return bool(server.http.get("/about").json()["about"] == "edited")

        eventually(edited)
        eventually(lambda: server.job(job)["state"] == "running")  # it was put back, not lost


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> image.Image:
    """The image, with a model that only a fake plugin can use."""
    root = tmp_path_factory.mktemp("image")
    root.chmod(0o755)
    made = image.Image(root)
    made.build()
    made.env.update(WITHOUT_DISK_OR_GPU)
    with socket.create_server(("127.0.0.1", 0)) as free:
        made.env["PFMS_PORT"] = str(free.getsockname()[1])
    return made


@contextmanager
def container(built: image.Image, user: int) -> Iterator[Server]:
    """The image's own command, with a fake plugin."""
    env = {**built.env, "PFMS_PLUGIN_COMMAND": str(PLUGINS / "ok.py"), "PFMS_INSECURE": "true"}
    workspace = built.root / "workspace"
    with listening(
        built.argv(built.command, user), env, built.root.with_suffix(".log"), workspace
    ) as server:
        yield server


@needs_root
def test_the_image_does_not_serve_before_it_is_told_who_may_call(built: image.Image) -> None:
    done = built.run(built.command, A_RANDOM_USER, PFMS_PLUGIN_COMMAND=str(PLUGINS / "ok.py"))
    assert done.returncode == 2
    assert "PFMS_TOKENS_FILE" in done.stderr
    assert "PFMS_INSECURE" in done.stderr


@needs_root
def test_any_user_of_group_0_runs_the_image_even_after_another(built: image.Image) -> None:
    seed_model(built.root / "workspace")
    subprocess.run(["chmod", "-R", "g+rwX", built.root / "workspace"], check=True)
    with container(built, A_RANDOM_USER) as server:
        assert built.run(built.health, A_RANDOM_USER).returncode == 0
        answer = server.infer()
        assert answer.status_code == 200, answer.text
        first = answer.headers["X-Pfms-Job"]
        folder = server.workspace / "jobs" / first
        assert (folder.stat().st_uid, folder.stat().st_gid) == (A_RANDOM_USER, 0)
        assert server.stop() == 0
    assert built.run(built.health, A_RANDOM_USER).returncode == 1

    with container(built, ANOTHER_USER) as server:
        assert server.infer().status_code == 200
        assert server.http.delete(f"/jobs/{first}").status_code == 204
        assert server.http.delete("/spleenseg/modelpth/demo").status_code == 204


@needs_root
@pytest.mark.real
def test_the_demo_runs_in_a_read_only_image_as_a_user_without_a_name(built: image.Image) -> None:
    strict = replace(built, writable=("/tmp", "/dev/shm"))
    done = strict.run(["pfms", "demo"], A_RANDOM_USER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (built.root / "workspace" / "demo" / "segmentation.nii.gz").stat().st_size
