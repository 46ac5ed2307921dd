"""A start that cannot be: one clear line with a remedy, exit code 2, and nothing in the way."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PLUGINS, ROOT, Server, StartServer, seed_model, start


def refused(*arguments: str, cwd: Path = ROOT, prefix: Sequence[str] = (), **settings: Any) -> str:
    """Start a server that does not come up; the one line that it says."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PFMS_")}
    environment["PYTHONPATH"] = str(ROOT)
    defaults = {"plugin_command": PLUGINS / "ok.py", "devices": "cpu", "port": 0}
    for name, value in {**defaults, **settings}.items():
        environment[f"PFMS_{name.upper()}"] = str(value)
    ended = subprocess.run(
        [*prefix, sys.executable, "-m", "pfms", "serve", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("pfms cannot start: ")
    assert line.endswith(".")
    assert ".." not in line.replace("...", "")
    return line


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"port": "web"}, "PFMS_PORT='web'"),
        ({"devices": "cuda:99"}, "'cuda:99' is not available"),
        ({"plugin_command": "no-such-command"}, "'no-such-command' was found neither"),
        ({"plugin_command": "/no/such/plugin"}, "'/no/such/plugin'"),
        ({"plugin_command": "/no/such/plugin.py"}, "'/no/such/plugin.py'"),
        ({"host": "203.0.113.1"}, "cannot listen on 203.0.113.1"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, dict) else None,
)
def test_a_wrong_setting_is_one_line_that_names_it(
    workspace: Path, settings: dict[str, Any], words: str
) -> None:
    line = refused(workspace=workspace, **settings)

    assert words in line or words.capitalize() in line
    assert not (workspace / "pfms.db").exists()


def test_config_env_in_the_working_directory_is_read_and_its_slips_are_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.env").write_text("PFMS_QUEUE_LIMIT=many\n")
    assert "PFMS_QUEUE_LIMIT='many'" in refused(cwd=tmp_path)

    (tmp_path / "config.env").write_text("PFMS_QUEUE_LIMITS=5\n")
    assert "PFMS_QUEUE_LIMITS, which is not a setting" in refused(cwd=tmp_path)


def test_a_port_that_is_taken_is_reported_with_a_remedy(workspace: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused("--port", str(port), workspace=workspace)

    assert f"ort {port} is taken" in line
    assert "--port 0" in line


def test_a_second_server_of_a_workspace_is_refused_and_the_first_goes_on(
    start_server: StartServer,
) -> None:
    first = start_server()

    line = refused(workspace=first.workspace)

    assert f"process {first.process.pid}" in line
    assert str(first.workspace) in line
    assert first.infer().status_code == 200


def test_a_workspace_that_is_a_file_is_refused(workspace: Path) -> None:
    workspace.write_text("a file")

    assert f"workspace {workspace} is not writable" in refused(workspace=workspace)


def working(*prefix: str) -> Sequence[str]:
    """A command that starts a program otherwise, where it is there and may do so."""
    if subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True).returncode != 0:
        pytest.skip(f"{prefix[0]} cannot do this here")
    return prefix


@pytest.mark.parametrize("part", ["", "uploads"])
def test_a_workspace_that_cannot_be_written_to_is_refused(workspace: Path, part: str) -> None:
    (workspace / part).mkdir(parents=True)
    (workspace / part).chmod(0o555)
    prefix: Sequence[str] = ()
    if os.geteuid() == 0:  # whom no permission binds, until this right is taken away
        prefix = working("setpriv", "--bounding-set=-dac_override,-dac_read_search")

    line = refused(workspace=workspace, prefix=prefix)

    assert f"workspace {workspace} is not writable" in line
    assert "PFMS_WORKSPACE" in line
    assert not (workspace / "pfms.db").exists()


def test_an_option_wins_over_the_environment(start_server: StartServer) -> None:
    """`start_server` gives --port 0 and --workspace; the environment says otherwise."""
    server: Server = start_server(port=1)

    assert not server.url.endswith(":1")
    assert (server.workspace / "pfms.db").is_file()


def test_a_user_without_a_name_and_a_home_may_serve(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container on OpenShift: a random UID, not in the passwd file, in group 0."""
    prefix = working("unshare", "--user", "--map-user=1000700000", "--map-group=0")
    old_mask = os.umask(0o002)
    seed_model(workspace)
    os.umask(old_mask)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.delenv("USER", raising=False)

    server = start(workspace, "reports.py", prefix=prefix)
    try:
        job_id = server.infer().headers["x-pfms-job"]
        folder = workspace / "jobs" / job_id
        seen = json.loads((folder / "output" / "report.json").read_text())["environment"]
        assert seen["USER"]  # else `import monai` dies
        assert os.access(seen["HOME"], os.W_OK)
        for path in (workspace, *workspace.rglob("*")):
            if path != server.log:
                mode = path.stat().st_mode
                assert mode >> 6 & 7 == mode >> 3 & 7, path  # the group may what the owner may
    finally:
        server.stop()
