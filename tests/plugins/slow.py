"""Like `ok.py`, but 0.2 seconds later."""

import time

from common import segment

time.sleep(0.2)
segment()
