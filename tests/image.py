"""The image without Docker: the Dockerfile read, and its last stage carried out in a chroot.

Its instructions are taken from the Dockerfile's own text. Three things stand in for what only a
registry and the builder stage could give: this machine's /usr for the base image, the environment
that these tests run in for /opt/venv (the same tools/install.py made it), and PYTHONPATH for its
knowledge of /srv. There is no tini: the command is started directly.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import PLUGINS, ROOT

DOCKERFILE = ROOT / "Dockerfile"
_VENV = "/opt/venv"
# The root: mount what stands in below it, not to be changed from there, and go in. With folders in
# `writable`, the rest is read-only, and there are no rights but those of the user.
_ENTER = """
root=$1 folder=$2 user=$3 groups=$4 writable=$5
shift 5
empty() { mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmpfs "$root$1"; }  # as Docker does
if [ -n "$writable" ]; then
    mount --bind "$root" "$root"
    [ ! -d "$root/workspace" ] || mount --bind "$root/workspace" "$root/workspace"
    for each in $writable; do case $each in /dev/*) ;; *) empty "$each" ;; esac; done
fi
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --rbind "$1" "$root$1"
    case $1 in /proc|/dev) ;; *) mount -o remount,bind,ro "$root$1" ;; esac
    shift
done
shift
if [ -n "$writable" ]; then
    for each in $writable; do case $each in /dev/*) empty "$each" ;; esac; done
    mount -o remount,bind,ro "$root"
    exec chroot "$root" setpriv --reuid="$user" --regid=0 --groups="$groups" --no-new-privs \
        --inh-caps=-all --bounding-set=-all sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
fi
exec chroot --userspec="$user:0" --groups=0 "$root" sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""


@dataclass(frozen=True)
class Step:
    """An instruction of a Dockerfile: its word, and the rest of the line."""

    word: str
    rest: str


def stages(dockerfile: str) -> list[list[Step]]:
    """The instructions of each stage."""
    lines = [line for line in dockerfile.splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n", " ", "\n".join(lines))
    found: list[list[Step]] = []
    for line in filter(None, map(str.strip, whole.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append(Step(word, rest.strip()))
    return found


def copied(step: Step) -> tuple[list[str], str]:
    """What a COPY copies out of the checkout (nothing, if from another stage), and where to."""
    *sources, target = step.rest.split()
    return ([] if sources[0].startswith("--from=") else sources), target


def can_be_carried_out() -> bool:
    """It takes root, and namespaces of its own for the mounts."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@dataclass
class Image:
    """What the last stage of the Dockerfile makes.

    Attributes:
        root: The folder that is its root.
        env: Its environment.
        folder: Its working directory.
        user: Its user and group, as Docker would take them.
        command: Of a container that is given none.
        health: The command of its health check.
        groups: Of the user, besides 0, where not all of the image is writable.
        writable: The only folders that are, besides the workspace; empty for all of the image.
    """

    root: Path
    env: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    )
    folder: str = "/"
    user: str = ""
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    groups: tuple[int, ...] = ()
    writable: tuple[str, ...] = ()

    def argv(self, command: list[str], user: int = 0) -> list[str]:
        """The command line that runs a command in it, to be started with `env`."""
        enter = ["unshare", "--mount", "sh", "-ec", _ENTER, "enter"]
        groups = ",".join(str(group) for group in (0, *self.groups))
        where = [str(self.root), self.folder, str(user), groups, " ".join(self.writable)]
        return [*enter, *where, *self._borrowed(), "--", *command]

    def run(
        self, command: list[str], user: int = 0, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end."""
        return subprocess.run(
            self.argv(command, user), env={**self.env, **env}, capture_output=True, text=True
        )

    def prepare(self) -> None:
        """Make the places of what it borrows: enough to run a program of this machine in it."""
        for path in self._borrowed():
            (self.root / path[1:]).mkdir(parents=True, exist_ok=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / name).symlink_to(f"usr/{name}")
        (self.root / "tmp").mkdir(exist_ok=True)  # what is borrowed may lie in it
        (self.root / "tmp").chmod(0o1777)

    def build(self) -> None:
        """Carry out the last stage."""
        self.prepare()
        self.env["PYTHONPATH"] = "/srv"
        for step in stages(DOCKERFILE.read_text())[-1]:
            self._carry_out(step)

    def _carry_out(self, step: Step) -> None:
        match step.word:
            case "ENV":
                for setting in shlex.split(step.rest):
                    name, _, value = setting.partition("=")
                    value = value.replace("$PATH", self.env["PATH"])
                    self.env[name] = value.replace(_VENV, sys.prefix)
            case "COPY":
                sources, target = copied(step)
                for source in sources:
                    self._copy(ROOT / source, target)
            case "RUN":
                done = self.run(["sh", "-c", step.rest])
                assert done.returncode == 0, f"{step.rest}\n{done.stderr}"
            case "USER":
                self.user = step.rest
            case "WORKDIR":
                self.folder = step.rest
            case "CMD":
                self.command = json.loads(step.rest)
            case "HEALTHCHECK":
                self.health = json.loads(step.rest.partition(" CMD ")[2])
            case word:
                assert word in ("FROM", "ARG", "VOLUME", "EXPOSE", "ENTRYPOINT"), word

    def _copy(self, source: Path, target: str) -> None:
        place = self.root / target.lstrip("/")
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, place, dirs_exist_ok=True, ignore=ignored)
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)

    def _borrowed(self) -> list[str]:
        """What of this machine it uses."""
        base = [] if sys.base_prefix.startswith("/usr") else [sys.base_prefix]
        return ["/usr", "/etc", "/proc", "/dev", *base, sys.prefix, str(PLUGINS)]
