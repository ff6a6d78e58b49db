"""Speed on one GPU: `python bench/gpu.py` compares the reference model with bench/plain.py.

A step has 65,536 tokens, and every measurement compiles anew. It writes bench/results/gpu.json
and gpu.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.speed.command import Benchmark, main

BENCHMARK = Benchmark(
    device="cuda",
    flags=["--train-batch-tokens", "65536"],
    steps=12,
    whole_steps=30,
    rounds=2,
    score_tokens=20_000,
)

if __name__ == "__main__":
    main(BENCHMARK, __doc__)
