"""One run, followed in the terminal until it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.desk.reading import Run, State, read_run
from tools.desk.tables import number, whole

if TYPE_CHECKING:
    from rich.console import RenderableType

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 48
INTERVAL_S = 1.0


def watch(folder: Path) -> int:
    """Exit code 0 where the run ended with a result, else 1."""
    if not sys.stdout.isatty():
        return _follow_in_lines(folder)
    from rich.live import Live

    with Live(view(read_run(folder)), auto_refresh=False) as live:
        while True:
            run = read_run(folder)
            live.update(view(run), refresh=True)
            if run.state is not State.RUNNING:
                return int(run.state is not State.DONE)
            time.sleep(INTERVAL_S)


def _follow_in_lines(folder: Path) -> int:
    """For pipes and logs: a line whenever there is something new."""
    told = ""
    while True:
        run = read_run(folder)
        facts = rows_of(run)
        line = "  ".join(f"{label} {value}" for label, value in facts if label != "loss")
        if line != told:
            print(line, flush=True)
            told = line
        if run.state is not State.RUNNING:
            return int(run.state is not State.DONE)
        time.sleep(INTERVAL_S)


def view(run: Run) -> RenderableType:
    """A bar, and one line for each fact."""
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    done = run.latest.get("train_s", 0.0)
    total = done + run.latest.get("left_s", 1.0)  # where a clock ends the run, steps do not tell
    table.add_row("", ProgressBar(total=total, completed=done, width=SPARKLINE_WIDTH))
    for label, value in rows_of(run):
        table.add_row(Text(label, style="dim"), Text(value))
    return Panel(table, title=str(run.folder), width=SPARKLINE_WIDTH + 30)


def rows_of(run: Run) -> list[tuple[str, str]]:
    """(label, value) of what is known."""
    latest = run.latest
    train = [point.train_loss for point in run.train_points()]
    settings = " ".join(f"{name}={setting.value}" for name, setting in run.settings.items())
    rows = [
        ("state", run.phase if run.state is State.RUNNING else run.state.value),
        ("preset", f"{run.preset} {settings}".rstrip()),
        ("seed", str(run.seed)),
        ("step", f"{run.step:,} of {run.steps:,}" if run.steps else "none yet"),
    ]
    if train:
        rows.append(("loss", f"{sparkline(train)} {train[-1]:.4f}"))
    val = run.val_points()
    if val:
        rows.append(
            ("validation", f"{val[-1].val_loss:.4f} nats per token at step {val[-1].step:,}")
        )
    if latest:
        rows += [
            ("speed", f"{latest['tokens_per_s']:,.0f} tokens/s"),
            ("rate", f"{latest['lr_scale']:.2f} of the full learning rates"),
            ("trained", duration(latest["train_s"])),
        ]
    if run.state is State.RUNNING and run.phase == "training" and latest:
        rows.append(("left", f"{duration(latest['left_s'])} of training, then export and scoring"))
    if run.val_bpb is not None:
        score = f"{run.val_bpb:.5f} bits per byte, the model alone {number(run.neural_bpb, 5)}"
        rows.append(("score", score))
        rows.append(("bytes", whole(run.bytes_total)))
    return rows


def sparkline(values: Sequence[float], width: int = SPARKLINE_WIDTH) -> str:
    """A curve of block characters, at most `width` of them, each the mean of its share."""
    width = min(width, len(values))
    means = []
    for i in range(width):
        share = values[i * len(values) // width : (i + 1) * len(values) // width]
        means.append(sum(share) / len(share))
    low = min(means)
    span = max(means) - low or 1.0
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((mean - low) / span * top)] for mean in means)


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s` or `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
