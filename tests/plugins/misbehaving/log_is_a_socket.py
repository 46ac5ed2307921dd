"""Puts in the place of its log a socket."""

import socket

from places import LOG, segment_without

segment_without(LOG)
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(str(LOG))
