"""The figures as two bar charts."""

from pathlib import Path
from typing import Any

from bench.speed.sides import SCORING_SIDES, TRAINING_SIDES

PIECE_COLOURS = ("#2980b9", "#e67e22", "#7f8c8d")


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.2), layout="constrained", width_ratios=(3, 2)
    )
    draw_training(left, result["training"])
    draw_scoring(right, result["scoring"])
    for axis in (left, right):
        axis.margins(x=0.25)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def draw_training(axis: Any, rows: dict[str, dict]) -> None:
    for y, side in enumerate(TRAINING_SIDES):
        end = 0.0
        pieces = rows[side]["pieces_ms"].items()
        for (piece, ms), colour in zip(pieces, PIECE_COLOURS, strict=True):
            axis.barh(y, ms, left=end, color=colour, label=piece if y == 0 else None)
            end += ms
        axis.text(end, y, f" {rows[side]['step_ms']:.0f} ms a step", va="center", fontsize=9)
    axis.set(
        yticks=range(len(TRAINING_SIDES)),
        yticklabels=TRAINING_SIDES,
        xlabel="training step, ms by piece",
    )


def draw_scoring(axis: Any, rows: dict[str, dict]) -> None:
    from matplotlib import ticker

    for y, side in enumerate(SCORING_SIDES):
        rate = rows[side]["window_tokens_per_s"]
        axis.barh(y, rate, color="#27ae60")
        axis.text(rate, y, f" {rate:,.0f}", va="center", fontsize=9)
    axis.set(
        yticks=range(len(SCORING_SIDES)),
        yticklabels=SCORING_SIDES,
        xlabel="scoring, window tokens per second",
    )
    axis.xaxis.set_major_locator(ticker.MaxNLocator(3))
