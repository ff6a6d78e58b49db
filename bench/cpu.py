"""Speed on a CPU: `python bench/cpu.py` compares the docs_cpu preset with bench/plain.py and writes bench/results/cpu.json and cpu.png.

Run it alone on the machine; about 4 minutes on 2 cores."""

from speed import main

if __name__ == "__main__":
    main(
        "cpu",
        __doc__,
        ["--preset", "docs_cpu"],
        steps=20,
        whole_steps=30,
        rounds=3,
        score_tokens=60_000,
    )
