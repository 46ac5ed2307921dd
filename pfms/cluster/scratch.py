"""The folder of an actor on its node, which is gone soon after the actor, however that ended.

`python -m pfms.cluster.scratch FOLDER` is the janitor: it leaves its parent, waits for the end of
its stdin, which the actor holds open, and removes the folder.
"""

import fcntl
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from pfms.storage.removal import discard

log = logging.getLogger(__name__)

_REMOVE_SECONDS = 20.0  # for the processes that still write into it to end


class Scratch:
    """A new folder, and the promise that it will be removed. Blocking.

    Attributes:
        root: The folder.
    """

    def __init__(self, place: str = "") -> None:
        """Make it below a folder of this user's, and remove what no actor holds any longer there.

        Args:
            place: Where that folder is; empty is the system's place for such files.

        Raises:
            OSError: It cannot be made.
        """
        base = Path(place or tempfile.gettempdir()) / f"pfms-ray-{os.getuid()}"
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        if base.is_symlink() or base.stat().st_uid != os.getuid():
            raise PermissionError(13, "belongs to someone else", str(base))
        with _locked(base, fcntl.LOCK_EX):
            for left in base.iterdir():
                _remove_unless_held(left)
            self.root = base / uuid4().hex
            self.root.mkdir(mode=0o700)
            self._held = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._held, fcntl.LOCK_EX)
        self._janitor = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(self.root)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._janitor.wait()  # it goes on in a child, so that Ray does not take it for one of ours

    def job(self, job_id: str) -> Path:
        """A new folder for a run."""
        root = self.root / job_id
        discard(root)
        root.mkdir()
        return root


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Hold the lock of a folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def _remove_unless_held(folder: Path) -> None:
    with (
        suppress(BlockingIOError, NotADirectoryError, FileNotFoundError),
        _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB),
    ):
        _remove(folder)


def _remove(folder: Path) -> None:
    until = time.monotonic() + _REMOVE_SECONDS
    while True:
        try:
            discard(folder)
        except OSError as error:
            if time.monotonic() > until:
                log.warning("%s cannot be removed: %s", folder, error)
                return
            time.sleep(0.2)
        else:
            return


def main() -> int:
    """Wait, then remove the folder that the command line names."""
    if os.fork():
        os._exit(0)
    while os.read(0, 1):
        pass
    _remove(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
