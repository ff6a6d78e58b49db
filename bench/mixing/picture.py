"""Score against table size, beside the scores of real probabilities."""

from pathlib import Path
from typing import Any, NamedTuple

RED = "#c0392b"


class Level(NamedTuple):
    """A score that does not depend on the size of a table."""

    key: str  # of the results
    label: str
    colour: str
    style: str


LEVELS = (
    Level("neural", "model alone", "#7f8c8d", ":"),
    Level("exact_sigmoid", "exact counts, published sigmoid", "#2980b9", "--"),
    Level("exact_bayes", "exact counts, Bayesian gate (Σp = 1)", "#27ae60", "-"),
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
        ylabel="bits per byte",
    )
    axis.set_ylim(0, None)
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110)


def draw_hashed(axis: Any, rows: list[dict]) -> None:
    by_size = sorted(rows, key=lambda row: row["buckets"])
    sizes = [row["buckets"] for row in by_size]
    claims = [row["claimed_bpb"] for row in by_size]
    axis.plot(sizes, claims, "o-", color=RED, label="hashed tables, claimed (not a probability)")
    for size, claim, row in zip(sizes, claims, by_size, strict=True):
        axis.annotate(
            f"Σp ≈ {row['sum_median']:.0f}",
            (size, claim),
            textcoords="offset points",
            xytext=(4, -14),
            color=RED,
            fontsize=8,
        )
