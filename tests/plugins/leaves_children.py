"""Succeeds and leaves children behind; one ignores TERM, one has its own session."""

import os
import signal
import time


def linger(prepare):
    ready, tell = os.pipe()
    if os.fork() == 0:
        prepare()
        os.write(tell, b"!")
        time.sleep(3600)
    os.read(ready, 1)


linger(lambda: None)
linger(lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
linger(os.setsid)
print("left three")
