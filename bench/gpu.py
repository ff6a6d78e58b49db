"""Speed on one GPU: `python bench/gpu.py` compares the reference model, 65,536 tokens per step, with bench/plain.py and writes
bench/results/gpu.json and gpu.png. Every measurement compiles anew."""

from speed import main

if __name__ == "__main__":
    main(
        "cuda",
        __doc__,
        ["--train-batch-tokens", "65536"],
        steps=12,
        whole_steps=30,
        rounds=2,
        score_tokens=20_000,
    )
