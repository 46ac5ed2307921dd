"""Makes a FIFO with the name of the folder that pfms writes the labels to."""

import os

from common import segment

segment()
os.mkfifo("result")
