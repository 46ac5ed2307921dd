"""Runs `pfms` and reports each blocking call on its event loop; for tests/test_architecture.py.

Wall-clock time could not tell a blocking call from a busy machine. So Python's audit hooks report
the calls that can block, and the thread's clock measures the CPU time of the loop's callbacks.
"""

import asyncio
import os
import sys
import threading
import time
import traceback
from typing import Any, SupportsIndex

from pfms.cli import main

BLOCKS = {
    *("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.link"),
    *("os.truncate", "os.system", "shutil.rmtree", "shutil.copyfile", "shutil.move"),
    *("sqlite3.connect", "socket.getaddrinfo", "socket.gethostbyname", "ctypes.dlopen"),
}
CPU_SECONDS = 0.25  # of one callback: far more than any takes, and far less than a volume would

on_loop = threading.local()


def noted(what: str) -> None:
    print(f"BLOCKED {what}", file=sys.stderr, flush=True)


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in BLOCKS or not getattr(on_loop, "runs", False):
        return
    on_loop.runs = False
    frames = traceback.extract_stack()[:-1]
    # Allowed: Python source, which is read once; pipes, opened by number; /dev/null, for a child.
    what = arguments[0] if arguments else None
    imports = any(frame.filename.startswith("<frozen importlib") for frame in frames)
    if not (imports or isinstance(what, int) or str(what).endswith((".py", ".pyc", os.devnull))):
        ours = [f"{f.filename}:{f.lineno}" for f in frames if "/pfms/" in f.filename]
        noted(f"{event} {arguments!r} by {ours[-1:] or frames[-1]}")
    on_loop.runs = True


def watch() -> None:
    run = asyncio.Handle._run

    def watched(handle: asyncio.Handle) -> None:
        on_loop.runs = True
        began = time.thread_time()
        try:
            run(handle)
        finally:
            on_loop.runs = False
            took = time.thread_time() - began
            if took > CPU_SECONDS:
                noted(f"{took:.2f} s of CPU in {handle!r}")

    sleep = time.sleep

    def watched_sleep(seconds: float | SupportsIndex) -> None:  # it has no audit event
        if getattr(on_loop, "runs", False):
            noted(f"time.sleep({seconds})")
        sleep(seconds)

    asyncio.Handle._run = watched  # type: ignore[method-assign,assignment]
    time.sleep = watched_sleep
    sys.addaudithook(hook)


if __name__ == "__main__":
    watch()
    main()
