"""Score against table size, beside the scores of real probabilities."""

from pathlib import Path
from typing import Any, NamedTuple

# Okabe-Ito: told apart without red-green vision; each line has a style of its own beside.
CLAIMED = "#D55E00"


class Level(NamedTuple):
    """A score that does not depend on the size of a table."""

    key: str  # of the results
    label: str
    colour: str
    style: str


LEVELS = (
    Level("neural", "model alone", "#666666", ":"),
    Level("exact_sigmoid", "exact counts, published sigmoid", "#0072B2", "--"),
    Level("exact_bayes", "exact counts, Bayesian gate (Σp = 1)", "#009E73", "-."),
)


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    draw_hashed(axis, result["hashed"])
    for level in LEVELS:
        score = result[level.key]
        label = f"{level.label}: {score:.4f}"
        axis.axhline(score, color=level.colour, linestyle=level.style, label=label)
    axis.set(
        xscale="log",
        xlabel="buckets per table (smaller table, more collisions, better “score”)",
        ylabel="bits per byte, less is better where Σp = 1",
    )
    axis.set_ylim(0, None)
    axis.margins(x=0.12)  # room for the last point's text
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110)


def draw_hashed(axis: Any, rows: list[dict]) -> None:
    by_size = sorted(rows, key=lambda row: row["buckets"])
    sizes = [row["buckets"] for row in by_size]
    claims = [row["claimed_bpb"] for row in by_size]
    axis.plot(
        sizes, claims, "o-", color=CLAIMED, label="hashed tables, claimed (not a probability)"
    )
    for size, claim, row in zip(sizes, claims, by_size, strict=True):
        axis.annotate(
            f"Σp ≈ {row['sum_median']:.0f}",
            (size, claim),
            textcoords="offset points",
            xytext=(4, -14),
            color=CLAIMED,
            fontsize=8,
        )
