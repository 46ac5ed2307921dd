"""Keeps replacing its processes: a chain of forks in its group, and more in another session."""

import os
import signal
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
until = time.monotonic() + 60  # in case nothing ends it
print("forking", flush=True)
if os.fork() == 0:
    while time.monotonic() < until and os.fork() == 0:  # the child goes on, the parent ends
        time.sleep(0.002)
    os._exit(0)
if os.fork() == 0:
    os.setsid()
while time.monotonic() < until:
    if os.fork() == 0:
        time.sleep(0.05)
        os._exit(0)
    time.sleep(0.002)
