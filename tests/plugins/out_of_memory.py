"""Is killed, as happens when the system runs out of memory."""

import os
import signal

os.kill(os.getpid(), signal.SIGKILL)
