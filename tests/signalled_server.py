"""Runs `pfms` and sends it a signal at some moments of its start, and one when it listens.

    python -m tests.signalled_server SIGNAL MOMENT TIMES serve ...

A moment is one of the events that Python's audit hooks report (a file opened, an import, a socket)
after `pfms.server.serve` has begun. With a clock, no moment could be hit twice.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from pfms import server
from pfms.cli import main
from pfms.settings import Settings

kind, moment, times = signal.Signals[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
seen = 0


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    global seen
    if event == "os.kill" or threading.current_thread() is not threading.main_thread():
        return
    seen += 1
    if moment <= seen < moment + times:
        os.kill(os.getpid(), kind)


if __name__ == "__main__":
    serve = server.serve

    def serve_signalled(settings: Settings, say: Callable[[str], None]) -> None:
        def say_and_end(line: str) -> None:
            say(line)
            os.kill(os.getpid(), kind)  # where the start has fewer moments

        sys.addaudithook(hook)
        serve(settings, say_and_end)

    server.serve = serve_signalled
    del sys.argv[1:4]
    main()
