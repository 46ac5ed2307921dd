"""Puts a FIFO in the place of its log, and never ends."""

import os
import time

from places import LOG

print("hanging", flush=True)
LOG.unlink()
os.mkfifo(LOG)
while True:
    time.sleep(60)
