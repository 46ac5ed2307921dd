"""Puts a link in the place of its log, and never ends."""

import time

from places import LOG, SECRET

print("hanging", flush=True)
LOG.unlink()
LOG.symlink_to(SECRET)
while True:
    time.sleep(60)
