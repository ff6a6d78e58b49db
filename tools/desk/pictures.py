"""One picture of experiments: how they trained, and what they scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.errors import UserError
from tools.desk.comparing import Experiment, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe–Ito: told apart without red-green vision. The base is black.
COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A6D00")
MARKERS = "osD^vP*X"
OTHERS = "#999999"
ROW_HEIGHT = 0.34  # inches


def save_picture(path: Path, rows: Sequence[Row], title: str) -> None:
    """Losses against steps on the left; on the right bits per byte, a dot for each seed.

    At most as many experiments have a colour and a curve as there are colours: the base and those
    that score best. Raises UserError for a path that matplotlib cannot write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    experiments = [row.experiment for row in rows]
    styles = _styles(experiments)
    height = max(4.2, 1.6 + ROW_HEIGHT * len(rows))
    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    curves, scores = figure.subplots(1, 2, width_ratios=(1, 1))
    _draw_curves(curves, experiments, styles)
    _draw_scores(scores, rows, styles)
    figure.suptitle(title, fontsize=11)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib does not know
        raise UserError(f"{path}: expected a place for a picture, found {error}") from None


def _styles(experiments: Sequence[Experiment]) -> dict[int, tuple[str, str]]:
    """(colour, marker) by the number of the experiment, of those that have one."""

    def rank(i: int) -> tuple[bool, float]:
        mean = experiments[i].mean()
        return i != 0, float("inf") if mean is None else mean

    best = sorted(range(len(experiments)), key=rank)[: len(COLOURS)]
    shown = zip(sorted(best), COLOURS, MARKERS, strict=False)
    return {i: (colour, marker) for i, colour, marker in shown}


def _draw_curves(
    axes: Axes, experiments: Sequence[Experiment], styles: dict[int, tuple[str, str]]
) -> None:
    """Thin lines for training, which is noisy, and markers for validation."""
    for i, (colour, marker) in styles.items():
        label = experiments[i].label
        for run in experiments[i].runs:
            train = run.train_points()
            steps = [p.step for p in train]
            losses = [p.train_loss for p in train]
            axes.plot(steps, losses, color=colour, linewidth=0.9, alpha=0.6)
            val = run.val_points()
            steps = [p.step for p in val]
            losses = [p.val_loss for p in val]
            axes.plot(steps, losses, marker, color=colour, markersize=4.5, linestyle="none")
        axes.plot([], [], color=colour, marker=marker, markersize=4.5, label=label)
    hidden = len(experiments) - len(styles)
    title = "lines: training, markers: validation"
    axes.set_title(title + (f" ({hidden} not drawn)" if hidden else ""), fontsize=9)
    axes.set(xlabel="step", ylabel="loss, nats per token")
    _show_late_training(axes, experiments)
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)


def _show_late_training(axes: Axes, experiments: Sequence[Experiment]) -> None:
    """The first tenth of training falls so far that the rest would be one flat line."""
    late = []
    for experiment in experiments:
        for run in experiment.runs:
            for point in run.points:
                if 10 * point.step >= run.step and point.step > 0:
                    late += [loss for loss in point[2:] if loss is not None]
    if late:
        margin = 0.05 * (max(late) - min(late)) or 0.1
        axes.set_ylim(min(late) - margin, max(late) + margin)


def _draw_scores(axes: Axes, rows: Sequence[Row], styles: dict[int, tuple[str, str]]) -> None:
    """A row for each experiment: a dot a seed, a bar for the mean, its confidence interval."""
    labels = []
    for i, row in enumerate(rows):
        experiment = row.experiment
        colour, marker = styles.get(i, (OTHERS, "o"))
        scores = list(experiment.scores().values())
        axes.plot(scores, [i] * len(scores), marker, color=colour, markersize=5, alpha=0.75)
        mean = experiment.mean()
        labels.append(experiment.label if mean is not None else f"{experiment.label} (no score)")
        if mean is not None:
            axes.plot([mean, mean], [i - 0.28, i + 0.28], color=colour, linewidth=2.2)
        base = rows[0].experiment.mean()
        found = row.difference
        if found is not None and found.low is not None and base is not None:
            ends = [base + found.low, base + found.high]
            axes.plot(ends, [i + 0.2] * 2, color=colour, linewidth=1, marker="|", markersize=6)
    base = rows[0].experiment.mean()
    if base is not None:
        axes.axvline(base, color=COLOURS[0], linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(xlabel="val_bpb, bits per byte (lower is better)")
    axes.set_title("dots: seeds, bars: means, lines: 95% interval against the base", fontsize=9)
    _limit_to_scores(axes, rows)
    _tidy(axes)


def _limit_to_scores(axes: Axes, rows: Sequence[Row]) -> None:
    """Intervals of few seeds may be so wide that all dots would be one: they are cut instead."""
    scores: list[float] = []
    for row in rows:
        scores += row.experiment.scores().values()
    if scores:
        room = (max(scores) - min(scores)) or 0.01
        axes.set_xlim(min(scores) - 0.6 * room, max(scores) + 0.6 * room)
        axes.ticklabel_format(axis="x", useOffset=False)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
