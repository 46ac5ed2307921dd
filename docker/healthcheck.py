"""The image's health check: exit code 0 if the server answers, otherwise 1. Needs only Python.

It checks liveness, not readiness: an unhealthy container is restarted, which would cure neither a
full disk nor a missing GPU, and would cut a drain short.
"""

import http.client
import os
import ssl
import sys

SECONDS = 4  # below the check's own time limit


def main() -> int:
    """Ask for /health/live at the address on which the settings make the server listen."""
    host = os.environ.get("PFMS_HOST", "127.0.0.1")
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    port = int(os.environ.get("PFMS_PORT", "2024"))
    where = everywhere.get(host, host)
    connection = http.client.HTTPConnection(where, port, timeout=SECONDS)
    if os.environ.get("PFMS_TLS_CERTIFICATE"):
        # The certificate is for the names that others use: whether it fits is theirs to check.
        unchecked = ssl._create_unverified_context()  # noqa: S323
        connection = http.client.HTTPSConnection(where, port, timeout=SECONDS, context=unchecked)
    try:
        connection.request("GET", "/health/live")
        return int(connection.getresponse().status != http.client.OK)
    except (OSError, http.client.HTTPException):
        return 1


if __name__ == "__main__":
    sys.exit(main())
