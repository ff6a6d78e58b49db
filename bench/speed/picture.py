"""The figures as two bar charts."""

from pathlib import Path
from typing import Any

from bench.speed.sides import SCORING_SIDES, TRAINING_SIDES

# Okabe-Ito: told apart without red-green vision; each piece has a hatch of its own beside.
PIECE_LOOKS = (("#0072B2", ""), ("#E69F00", "//"), ("#56B4E9", ".."), ("#BBBBBB", "xx"))
REST = "not timed apart"
BAR = "#0072B2"


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=(3, 2)
    )
    draw_training(left, result["training"])
    draw_scoring(right, result["scoring"])
    for axis in (left, right):
        axis.margins(x=0.3)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper left", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def pieces_of(row: dict) -> dict[str, float]:
    """The pieces of a step in ms; what is missing to the whole step comes last.

    On a GPU the pieces, each of which is waited for, may take longer than a step; then nothing is
    missing.
    """
    pieces = dict(row["pieces_ms"])
    return pieces | {REST: max(0.0, row["step_ms"] - sum(pieces.values()))}


def step_text(row: dict, drawn: float) -> str:
    """What stands beside a bar `drawn` ms long: never another length without a word on it."""
    step = row["step_ms"]
    waited = f", {drawn:.0f} where each piece is waited for" if drawn > 1.005 * step else ""
    return f" {step:.0f} ms a step{waited}"


def draw_training(axis: Any, rows: dict[str, dict]) -> None:
    for y, side in enumerate(TRAINING_SIDES):
        end = 0.0
        for (piece, ms), (colour, hatch) in zip(
            pieces_of(rows[side]).items(), PIECE_LOOKS, strict=True
        ):
            look = {"color": colour, "hatch": hatch, "edgecolor": "white"}
            axis.barh(y, ms, left=end, label=piece if y == 0 else None, **look)
            end += ms
        axis.text(end, y, step_text(rows[side], end), va="center", fontsize=9)
    axis.set(
        yticks=range(len(TRAINING_SIDES)),
        yticklabels=TRAINING_SIDES,
        xlabel="training step, ms, less is better",
    )


def draw_scoring(axis: Any, rows: dict[str, dict]) -> None:
    from matplotlib import ticker

    for y, side in enumerate(SCORING_SIDES):
        rate = rows[side]["window_tokens_per_s"]
        axis.barh(y, rate, color=BAR)
        axis.text(rate, y, f" {rate:,.0f}", va="center", fontsize=9)
    axis.set(
        yticks=range(len(SCORING_SIDES)),
        yticklabels=SCORING_SIDES,
        xlabel="scoring, window tokens per second, more is better",
    )
    axis.xaxis.set_major_locator(ticker.MaxNLocator(3))
    axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
