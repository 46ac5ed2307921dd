"""Gets a TERM that is not from pfms, as when a service manager stops all of a service."""

import os
import signal

os.kill(os.getpid(), signal.SIGTERM)
