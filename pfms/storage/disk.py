"""The disk below the workspace: whether it is full, and whether it is network storage."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pfms.errors import DiskFull


@contextmanager
def reporting_full_disk() -> Iterator[None]:
    """Turn "no space left", from the operating system or SQLite, into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("The disk of the server ran full.") from None
        raise
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise DiskFull("The disk of the server ran full.") from None
        raise


_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.", "lustre", "ceph", "gluster", "beegfs", "gpfs")


def network_storage(path: Path) -> str | None:
    """The kind of network file system that a path is on, else None; the path need not exist."""
    place = path.resolve()
    mounts = [
        (part.mountpoint, part.fstype)
        for part in psutil.disk_partitions(all=True)
        if place.is_relative_to(part.mountpoint)
    ]
    _, kind = max(mounts, key=lambda mount: len(mount[0]), default=("", ""))
    return kind if kind.startswith(_NETWORK) else None
