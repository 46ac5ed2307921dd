"""A unit of systemd, really started by it, as far as a container allows.

systemd boots in namespaces of its own (mounts, processes, control groups) with a few targets and
the unit alone. What it changes in /etc, /opt and /var goes to a layer that vanishes with it. The
network is this machine's. It needs root and the right to mount.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import ROOT, eventually

SYSTEMD = Path("/lib/systemd/systemd")
PYTHON, SOURCE = "/opt/python", "/opt/source"  # where this machine's are seen there
UNITS, LOG = "/etc/units", "/var/log/of-the-unit"
_TARGETS = ("sysinit", "basic", "shutdown", "network-online", "test")
# What the kernel may limit by version 1 of control groups, and what systemd itself needs.
_HIERARCHIES = ("name=systemd", "memory", "pids", "devices")

# The files: $1/tree is laid over the root; the arguments after the first three are pairs of a
# folder and where it is seen. Then the control groups: this process sees its own as the root.
_BOOT = """
layers=$1/layers tree=$1/tree units=$2 cgroups=$3
shift 3
mount --make-rprivate /
mkdir "$layers"
mount -t tmpfs tmpfs "$layers"
for folder in etc opt var; do
    own=$layers/$folder
    mkdir -p "$own/upper" "$own/work"
    mount -t overlay overlay \
        -o "lowerdir=/$folder,upperdir=$own/upper,workdir=$own/work" "/$folder"
done
cp -R "$tree/." /
while [ $# -gt 0 ]; do
    mkdir -p "$2"
    mount --bind "$1" "$2"
    shift 2
done
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
case $cgroups in
"") mount -t cgroup2 cgroup2 /sys/fs/cgroup ;;
*)
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified || rmdir /sys/fs/cgroup/unified
    for hierarchy in $cgroups; do
        where=/sys/fs/cgroup/${hierarchy#name=}
        mkdir "$where"
        mount -t cgroup -o "$(echo "$hierarchy" | sed s/^name=/none,name=/)" cgroup "$where"
    done ;;
esac
systemd-sysusers "$units"/*.sysusers >/dev/null
chgrp -R pfms /etc/pfms # as docs/deploying.md says
chmod 640 /etc/pfms/*
exec env -i container=test PATH="$PATH" SYSTEMD_UNIT_PATH="$units" \
    SYSTEMD_GENERATOR_PATH=/nowhere SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/nowhere \
    /lib/systemd/systemd --system --unit=test.target --log-target=null --show-status=no
"""

# Into the control groups $1, and on.
_JOIN = 'for group in $1; do echo $$ >"$group/cgroup.procs"; done; shift; exec "$@"'


def can_boot() -> bool:
    """Whether this is root on a machine with systemd, and may make namespaces."""
    if os.geteuid() != 0 or not SYSTEMD.exists() or not shutil.which("unshare"):
        return False
    mounts = ["unshare", "--mount", "--cgroup", "true"]
    return subprocess.run(mounts, capture_output=True).returncode == 0


@dataclass
class Booted:
    """A systemd that runs.

    Attributes:
        process: What started it; it ends with that.
        init: The ID of systemd itself, which is 1 in its own namespace.
    """

    process: subprocess.Popen[str]
    init: int

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, where systemd is."""
        enter = ["nsenter", f"--target={self.init}", "--mount", "--pid", "--cgroup", "--"]
        return subprocess.run([*enter, *command], capture_output=True, text=True)

    def shows(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def seen(self, path: str) -> Path:
        """Where a path of its is seen from here."""
        return Path(f"/proc/{self.init}/root{path}")


@contextmanager
def booted(folder: Path, unit: Path, files: dict[str, str]) -> Iterator[Booted]:
    """Boot with one unit, which is started.

    Args:
        folder: For what the boot needs; systemd does not write there.
        unit: The unit's file. Beside it is its `.sysusers`.
        files: The content of further files, by their path there.
    """
    tree = folder / "tree"
    _install(tree / "opt/pfms")
    written = {f"{UNITS}/{each.name}": each.read_text() for each in unit.parent.iterdir()}
    written |= {f"{UNITS}/{name}.target": "[Unit]\n" for name in _TARGETS}
    written |= {
        "/etc/pfms/environment": f"PYTHONPATH={SOURCE}\nLD_LIBRARY_PATH={PYTHON}/lib\n",
        f"{UNITS}/{unit.name}.d/log.conf": f"[Service]\nStandardError=append:{LOG}\n",
    }
    written[f"{UNITS}/test.target"] = f"[Unit]\nWants={unit.name}\n"
    for path, text in {**written, **files}.items():
        file = tree / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    packages = next(Path(sys.prefix).glob("lib/python3*/site-packages"))
    seen = [
        *(str(packages), str(Path("/opt/pfms") / packages.relative_to(sys.prefix))),
        *(str(ROOT), SOURCE),
        *(sys.base_prefix, PYTHON),
    ]
    groups = _own_groups(folder.name)
    hierarchies = " ".join(name for name in groups if name)
    boot = [
        *("sh", "-ec", _JOIN, "join", " ".join(map(str, groups.values()))),
        *("unshare", "--cgroup", "--mount", "--pid", "--uts", "--fork", "--kill-child"),
        *("sh", "-ec", _BOOT, "boot", str(folder), UNITS, hierarchies, *seen),
    ]
    try:
        process = subprocess.Popen(boot, text=True)
        try:
            yield _once_up(process)
        finally:
            process.kill()
            process.wait()
    finally:
        for group in groups.values():
            _remove(group)


def _install(place: Path) -> None:
    """What `tools/install.py` makes, with the packages of this environment mounted into it."""
    here = Path(sys.prefix)
    (place / "bin").mkdir(parents=True)
    (place / "pyvenv.cfg").write_text(f"home = {PYTHON}/bin\n")
    base = Path(sys.executable).resolve().relative_to(sys.base_prefix)
    (place / "bin" / "python").symlink_to(Path(PYTHON) / base)
    ray = ["ray"] if (here / "bin" / "ray").exists() else []  # an extra
    for name in ("pfms", "spleenseg", *ray):
        script = place / "bin" / name
        script.write_text((here / "bin" / name).read_text().replace(str(here), "/opt/pfms"))
        script.chmod(0o755)


def _own_groups(name: str) -> dict[str, Path]:
    """A new control group below this process's, in each hierarchy (version 2 is '')."""
    mounts = psutil.disk_partitions(all=True)
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, hierarchy, path = line.split(":", 2)
        if hierarchy not in ("", *_HIERARCHIES):
            continue
        for mount in mounts:
            kind = mount.fstype, hierarchy == "" or hierarchy in mount.opts.split(",")
            if kind == ("cgroup" if hierarchy else "cgroup2", True):
                groups[hierarchy] = Path(mount.mountpoint) / path.strip("/") / name
                groups[hierarchy].mkdir()
    return groups


def _once_up(process: subprocess.Popen[str]) -> Booted:
    def init() -> psutil.Process | None:
        children = psutil.Process(process.pid).children()
        return children[0] if children and children[0].name() == "systemd" else None

    eventually(lambda: init() or process.poll() is not None)
    found = init()
    assert found, "systemd did not start"
    up = Booted(process, found.pid)
    eventually(lambda: up.shows("test.target", "ActiveState") == "active")
    return up


def _remove(group: Path) -> None:
    """Remove a control group with those below it, once the last process has left."""

    def removed() -> bool:
        folders = [each for each in group.rglob("*") if each.is_dir()]
        try:
            for each in sorted(folders, reverse=True):
                each.rmdir()
            group.rmdir()
        except OSError:
            return False
        return True

    eventually(removed)
