"""Measure the pool of sandboxes: the same as `python -m bench perf --only pool_hit`."""

import subprocess
import sys
from pathlib import Path

command = [sys.executable, "-m", "bench", "perf", "--only", "pool_hit", *sys.argv[1:]]
sys.exit(subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode)
