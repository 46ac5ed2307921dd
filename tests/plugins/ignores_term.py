"""Ignores TERM, and so do its two children."""

import os
import signal
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(2):
    if os.fork() == 0:
        break
print("ignoring", flush=True)
while True:
    time.sleep(60)
