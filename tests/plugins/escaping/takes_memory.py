"""Does its work, after it has taken 2 GiB of memory, of which it uses nothing."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))
from common import segment

print("the kernel kills me at", Path("/proc/self/oom_score_adj").read_text(), flush=True)
taken = [bytearray(64 << 20) for _ in range(32)]
segment()
