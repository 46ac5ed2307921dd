"""`pfms watch`; profiles, and the completion of the shell."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.command import environment, finish, pfms, running
from tests.conftest import StartServer, eventually
from tests.tokens import add


def follows_two(process: subprocess.Popen[str]) -> None:
    """Wait until a command has two connections open at a time."""
    eventually(lambda: len(psutil.Process(process.pid).net_connections()) >= 2)


def test_jobs_are_followed_to_their_end(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("staged.py", jobs_per_device=2)
    jobs = [server.submit() for _ in range(2)]
    with running("watch", cwd=tmp_path, server=server.url) as process:
        follows_two(process)
        for folder in server.job_folders():
            for file in ("infer", "save", "end"):
                (folder / file).touch()
        out, err = finish(process, 0)
    assert err == "", "without a terminal it is quiet"
    assert sorted(line.split()[:2] for line in out.splitlines()) == sorted(
        [job, "succeeded"] for job in jobs
    )
    done = pfms("watch", cwd=tmp_path, server=server.url)
    assert done.stdout == "", "nothing waits or runs"


def test_a_job_that_did_not_succeed_is_1(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("exit3.py")
    job = server.submit()
    done = pfms("watch", job, "--json", cwd=tmp_path, server=server.url, code=1)
    assert [one["error"]["code"] for one in json.loads(done.stdout)["jobs"]] == ["plugin-failed"]
    refused = pfms("watch", "unknown", cwd=tmp_path, server=server.url, code=2)
    assert "job-not-found" in refused.stderr


def test_ctrl_c_ends_the_watching_alone(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("hangs.py")
    jobs = [server.submit() for _ in range(2)]
    with running("watch", *jobs, cwd=tmp_path, server=server.url) as process:
        follows_two(process)
        server.process.send_signal(signal.SIGSTOP)  # no event and no heartbeat comes
        process.send_signal(signal.SIGINT)
        process.wait(20)
        server.process.send_signal(signal.SIGCONT)
        finish(process, 130)
    assert [server.job(job)["ended_at"] for job in jobs] == [None, None]


# --- profiles ----------------------------------------------------------------------------------


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """The file of profiles, and `XDG_CONFIG_HOME` of its folder."""
    file = tmp_path / "config" / "pfms" / "profiles.toml"
    file.parent.mkdir(parents=True)
    return file


def said(profiles: Path, *words: str, code: int = 0, **settings: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "pfms", *words],
        cwd=profiles.parent,
        env=environment(**settings) | {"XDG_CONFIG_HOME": str(profiles.parents[1])},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code, ended
    return ended.stdout + ended.stderr


def test_a_profile_names_the_server_and_its_token(
    start_server: StartServer, profiles: Path, tmp_path: Path
) -> None:
    token = add(tmp_path / "tokens.json", "me")
    server = start_server(tokens_file=tmp_path / "tokens.json")
    kept = profiles.parent / "clinic.token"
    kept.write_text(token)
    kept.chmod(0o600)
    nowhere = "http://127.0.0.1:1"
    profiles.write_text(
        f'[default]\nserver = "{nowhere}"\n'
        f'[clinic]\nserver = "{server.url}"\ntoken_file = "{kept}"\n'
    )
    assert "demo" not in said(profiles, "models", "list", code=3)
    assert "demo" in said(profiles, "--profile", "clinic", "models", "list")
    assert "demo" in said(profiles, "models", "list", profile="clinic")
    assert nowhere in said(
        profiles, "--profile", "clinic", "models", "list", "--server", nowhere, code=3
    )
    assert nowhere in said(
        profiles, "--profile", "clinic", "models", "list", code=3, server=nowhere
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[clinic]\nserver = "x"', "has no profile [other]"),
        ("[other]\nserver = 5", "server is none of"),
        ('[other]\ntoken = "secret"', "token is none of"),
        ("[other", "cannot be read"),
    ],
)
def test_what_is_no_profile_is_2(profiles: Path, content: str, problem: str) -> None:
    profiles.write_text(content)
    told = said(profiles, "--profile", "other", "jobs", "list", code=2)
    assert problem in told
    assert "secret" not in told


# --- completion --------------------------------------------------------------------------------


def test_bash_completes_commands_and_options() -> None:
    bash = shutil.which("bash")
    assert bash
    script = """
eval "$(_PFMS_COMPLETE=source_bash pfms)"
function=$(complete -p pfms | sed 's/.* -F \\([^ ]*\\).*/\\1/')
COMP_WORDS=(pfms wa) COMP_CWORD=1; "$function" pfms wa; echo "${COMPREPLY[@]}"
COMP_WORDS=(pfms infer --skip) COMP_CWORD=2; "$function" pfms --skip; echo "${COMPREPLY[@]}"
"""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    ended = subprocess.run(
        [bash, "-c", script], env=environment() | {"PATH": path}, capture_output=True, text=True
    )
    assert ended.stdout.split() == ["watch", "--skip-existing"], ended
