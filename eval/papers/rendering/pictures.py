"""The pictures of a packed record."""

import io
from typing import TYPE_CHECKING

from eval.papers.logs.log import Log
from eval.papers.rendering.readme import bits_per_byte
from eval.papers.submission.schema import Submission

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEED_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)  # Okabe–Ito: told apart without red-green vision


def loss_picture(submission: Submission, logs: dict[str, Log]) -> bytes:
    """PNG: training loss of every seed against the step, validation points as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for (seed, log), colour in zip(logs.items(), _colours(len(logs)), strict=True):
        train = [(p.step, p.train_loss) for p in log.steps if p.train_loss is not None]
        validation = [(p.step, p.val_loss) for p in log.steps if p.val_loss is not None]
        if train:
            axes.plot(
                *zip(*train, strict=True), color=colour, linewidth=1, label=f"seed {seed}, training"
            )
        if validation:
            axes.plot(
                *zip(*validation, strict=True),
                "o",
                color=colour,
                markersize=4,
                label=f"seed {seed}, validation",
            )
    axes.set(xlabel="step", ylabel="nats per token", title=submission.name)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return _png(figure, axes)


def score_picture(submission: Submission) -> bytes:
    """PNG: bits per byte of every seed, before and after what the scorer adds, with xz for scale."""
    from matplotlib.figure import Figure

    rows = submission.seed_results
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    series = (
        ("pre_quant_val_bpb", "before quantisation", "|", "#666666"),
        ("neural_val_bpb", "model alone", "o", SEED_COLOURS[4]),
        ("val_bpb", "record", "D", SEED_COLOURS[0]),
    )
    for name, label, marker, colour in series:
        points = [
            (getattr(row, name), i)
            for i, row in enumerate(rows.values())
            if getattr(row, name) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=8, label=label)
    axes.axvline(submission.val_bpb, color=SEED_COLOURS[0], linewidth=1, alpha=0.5)
    if submission.data.xz_bytes:
        axes.axvline(
            bits_per_byte(submission.data),
            color=SEED_COLOURS[1],
            linewidth=1,
            linestyle="--",
            label="xz -9e",
        )
    axes.set_yticks(range(len(rows)), [f"seed {seed}" for seed in rows])
    axes.set(xlabel="bits per byte, lower is better", ylim=(-0.6, len(rows) - 0.4))
    axes.invert_yaxis()
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=4)
    return _png(figure, axes)


def _colours(count: int) -> list[str]:
    return [SEED_COLOURS[i % len(SEED_COLOURS)] for i in range(count)]


def _png(figure: "Figure", axes: "Axes") -> bytes:
    """PNG bytes that depend on the content alone: matplotlib's version stamp is left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
