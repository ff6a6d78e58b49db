"""The pictures of a packed record."""

import io
from typing import TYPE_CHECKING

from eval.papers.logs.log import Log
from eval.papers.rendering.readme import bits_per_byte
from eval.papers.submission.schema import Submission

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe–Ito: told apart without red-green vision.
SEED_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
SEED_LINES = ("-", "--", "-.", ":")
SERIES = (  # of the score picture: field of a seed, label, marker, colour
    ("pre_quant_val_bpb", "before quantisation", "|", "#666666"),
    ("neural_val_bpb", "model alone", "o", SEED_COLOURS[4]),
    ("val_bpb", "record", "D", SEED_COLOURS[0]),
)


def loss_picture(submission: Submission, logs: dict[str, Log]) -> bytes:
    """PNG: training loss of every seed against the step, validation points as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for i, (seed, log) in enumerate(logs.items()):
        colour = SEED_COLOURS[i % len(SEED_COLOURS)]
        line = SEED_LINES[i % len(SEED_LINES)]
        train = [step for step in log.steps if step.train_loss is not None]
        validation = [step for step in log.steps if step.val_loss is not None]
        if train:
            steps = [step.step for step in train]
            losses = [step.train_loss for step in train]
            label = f"seed {seed}, training"
            axes.plot(steps, losses, line, color=colour, linewidth=1, label=label)
        if validation:
            steps = [step.step for step in validation]
            losses = [step.val_loss for step in validation]
            label = f"seed {seed}, validation"
            axes.plot(steps, losses, "o", color=colour, markersize=4, label=label)
    axes.set(xlabel="step", ylabel="loss, nats per token", title=submission.name)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return _png(figure, axes)


def score_picture(submission: Submission) -> bytes:
    """PNG: bits per byte of every seed, before and after what the scorer adds; xz for scale."""
    from matplotlib.figure import Figure

    rows = submission.seed_results
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for name, label, marker, colour in SERIES:
        values = [getattr(row, name) for row in rows.values()]
        places = [i for i, value in enumerate(values) if value is not None]
        stated = [values[i] for i in places]
        if stated:
            axes.plot(stated, places, marker, color=colour, markersize=8, label=label)
    style = {"color": SEED_COLOURS[0], "linewidth": 1, "alpha": 0.5}
    axes.axvline(submission.val_bpb, label="mean of the record", **style)
    if submission.data.xz_bytes:
        scale = bits_per_byte(submission.data)
        axes.axvline(scale, color=SEED_COLOURS[1], linewidth=1, linestyle="--", label="xz -9e")
    axes.set_yticks(range(len(rows)), [f"seed {seed}" for seed in rows])
    axes.set(xlabel="bits per byte, lower is better", ylim=(-0.6, len(rows) - 0.4))
    axes.invert_yaxis()
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=5)
    return _png(figure, axes)


def _png(figure: "Figure", axes: "Axes") -> bytes:
    """PNG bytes that depend on the content alone: matplotlib's version stamp is left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
