"""Gets a TERM that is not from pfms, as when a service manager stops a whole service."""

import os
import signal

os.kill(os.getpid(), signal.SIGTERM)
