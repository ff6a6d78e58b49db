"""What public scripts claim, as a share of what the stream costs: `python bench/canary_picture.py`.

It reads bench/results/canary.json, which bench/canary.py writes, and draws canary.png beside it:
one point for each script that came to a score on a stream of uniform tokens.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.machine import RESULTS

UNIFORM = ("uniform", "long")
# Verdict, colour (Okabe-Ito) and mark: nobody has to tell them by colour alone.
LOOKS = ((True, "refuted", "#D55E00", "x"), (False, "nothing found", "#0072B2", "o"))
MOST_LABELS = 12


class Point(NamedTuple):
    """The lowest claim of one script: its share of the entropy, 1 where it is the entropy."""

    label: str
    share: float
    refuted: bool


def points(result: dict) -> list[Point]:
    """One for each script with a score on a uniform stream, the lowest claim first."""
    found = []
    for script in result["scripts"]:
        shares = [
            run["claimed"] / run["needed"]
            for run in script.get("runs", ())
            if run["source"] in UNIFORM and run.get("needed")
        ]
        if shares:
            found.append(Point(script["label"], min(shares), script["verdict"] == "INVALID"))
    return sorted(found, key=lambda point: point.share)


def draw(found: list[Point], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for refuted, name, colour, mark in LOOKS:
        places = [place for place, point in enumerate(found) if point.refuted == refuted]
        shares = [found[place].share for place in places]
        axis.plot(places, shares, mark, color=colour, label=f"{name}: {len(places)}")
    labelled = [point for point in enumerate(found) if point[1].refuted and point[1].share < 1]
    for place, point in labelled[:MOST_LABELS]:
        axis.annotate(point.label, (place, point.share), xytext=(6, -3), textcoords="offset points")
    axis.axhline(1.0, color="black", linewidth=1, label="the entropy: no code spends less")
    axis.set(
        xlabel="public scripts, run unmodified on uniform random tokens",
        ylabel="lowest claim / entropy (both in bits)",
        xticks=[],
    )
    axis.set_ylim(0, 1.06)
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "canary.json")
    args = parser.parse_args(words)
    if not args.results.is_file():
        print(f"error: {args.results}: no such file; bench/canary.py writes it", file=sys.stderr)
        return 2
    found = points(json.loads(args.results.read_text("utf-8")))
    picture = args.results.with_suffix(".png")
    draw(found, picture)
    print(f"{picture}: {len(found)} scripts, {sum(point.refuted for point in found)} refuted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
