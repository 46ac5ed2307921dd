"""Prints where it can write besides its own folder, and goes on once there is a file `end`."""

import os
import tempfile
import time
from pathlib import Path

from common import segment

PLACES = (
    *("/", "/etc", "/etc/pfms", "/home", "/home/pfms", "/opt/pfms", "/root", "/srv", "/usr"),
    *("/var", "/var/cache/pfms", "/var/lib", "/var/log", "/var/log/pfms"),
    *("/dev", "/dev/shm", "/run", "/run/secrets/pfms", "/sys/fs/cgroup", "/tmp", "/workspace"),
)


def writable(folder):
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


print("writes to", *filter(writable, PLACES))
Path("/dev/null").write_text("this still works")
print("user", os.geteuid(), "groups", *sorted({os.getegid(), *os.getgroups()}), flush=True)
while not Path("end").exists():
    time.sleep(0.01)
segment()
