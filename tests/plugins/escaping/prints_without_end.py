"""Prints until it is asked to end, and then says its last words."""

import os
import signal


def last_words(number, frame):
    os.write(1, b"the last words\n")
    os._exit(1)


os.write(1, b"the first words\n")
signal.signal(signal.SIGTERM, last_words)
while True:
    os.write(1, b"and so on and on and on and on\n" * 100)
