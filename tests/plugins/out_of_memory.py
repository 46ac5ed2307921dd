"""Is killed, as by a system that has no memory left."""

import os
import signal

os.kill(os.getpid(), signal.SIGKILL)
