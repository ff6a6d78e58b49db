"""Speed on a CPU: `python bench/cpu.py` compares the docs_cpu preset with bench/plain.py.

It writes bench/results/cpu.json and cpu.png. Run it alone on the machine; it takes about 4 minutes
on 2 cores.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.speed.command import Benchmark, main

BENCHMARK = Benchmark(
    device="cpu",
    flags=["--preset", "docs_cpu"],
    steps=20,
    whole_steps=30,
    rounds=3,
    score_tokens=60_000,
)

if __name__ == "__main__":
    main(BENCHMARK, __doc__)
