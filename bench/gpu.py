"""All that a GPU must show, in one command: `python bench/gpu.py`.

Each part runs in a process of its own, under a limit of its own, and its figures are written to
--out at once. All limits together are 6 minutes. requirements-gpu.txt says what the machine needs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.speed.gpu import main

if __name__ == "__main__":
    main(__doc__)
