"""Has a child do what `holds_memory.py` does, as the plugin has its DataLoader's workers."""

import subprocess
import sys
from pathlib import Path

holds = Path(__file__).with_name("holds_memory.py")
sys.exit(subprocess.run([sys.executable, holds, *sys.argv[1:]]).returncode)
