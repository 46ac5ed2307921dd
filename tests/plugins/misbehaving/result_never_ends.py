"""Its result never stops growing."""

import time

from common import segment
from places import RESULT

segment()
with RESULT.open("ab", buffering=0) as result:
    while True:
        result.write(bytes(4096))
        time.sleep(0.01)
