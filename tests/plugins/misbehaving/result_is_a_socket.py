"""Its result is a socket."""

import socket

from places import RESULT, segment_without

segment_without(RESULT)
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(str(RESULT))
