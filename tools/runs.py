"""List runs, compare them, follow one at work, or draw them.

Runs that differ in their seed alone are one experiment. --compare and --plot take the first
experiment as the base. No code of a run is executed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.errors import UserError

if TYPE_CHECKING:  # so that --help need not wait
    from tools.desk.reading import Run

RUNS = Path("runs")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "places",
        type=Path,
        nargs="*",
        metavar="FOLDER",
        help=f"folders of runs, or folders that hold some [{RUNS}]",
    )
    parser.add_argument("--compare", action="store_true", help="differences, with confidence")
    parser.add_argument("--watch", action="store_true", help="follow the run that is at work")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="one picture of all")


def run(args: argparse.Namespace) -> int:
    from eval.papers.rendering.tables import aligned
    from tools.desk.reading import find_runs
    from tools.desk.tables import list_rows

    runs = find_runs(args.places or [RUNS])
    if args.watch:
        from tools.desk.watching import watch

        return watch(_at_work(runs).folder)
    if args.compare:
        print(_comparison(runs))
    elif args.plot is None:
        print(aligned(list_rows(runs), gap=2))
    if args.plot is not None:
        _plot(args.plot, runs)
    return 0


def _at_work(runs: Sequence[Run]) -> Run:
    """The one to watch: the one named, else the one at work. Raises UserError."""
    from tools.desk.reading import State

    if len(runs) == 1:
        return runs[0]
    running = [run for run in runs if run.state is State.RUNNING]
    if len(running) != 1:
        found = ", ".join(str(run.folder) for run in running) or "none"
        raise UserError(f"--watch: expected one run at work, found {found}; name its folder")
    return running[0]


def _comparison(runs: Sequence[Run]) -> str:
    """Settings, curves and scores of the experiments, as text. Raises UserError for one alone."""
    from eval.papers.rendering.tables import aligned
    from tools.desk.comparing import against_first, experiments_of, losses_at_last_common_step
    from tools.desk.tables import COMPARISON_HEAD, comparison_rows, settings_rows
    from tools.desk.watching import sparkline

    experiments = experiments_of(runs)
    if len(experiments) < 2:
        raise UserError(
            f"--compare: expected two or more experiments, found {len(experiments)}: "
            "these runs differ in their seeds alone; name further folders"
        )
    firsts = [experiment.runs[0] for experiment in experiments]
    letters = [chr(ord("A") + i) if i < 26 else str(i) for i in range(len(experiments))]
    settings = settings_rows(firsts, letters)
    curves = []
    common = losses_at_last_common_step(firsts)
    for i, (letter, first) in enumerate(zip(letters, firsts, strict=True)):
        losses = [point.train_loss for point in first.train_points()]
        at = f"{common[1][i]:.4f} at step {common[0]:,}" if common else ""
        curves.append([letter, sparkline(losses) if losses else "", at, str(first.folder)])
    scores = comparison_rows(against_first(experiments))
    for letter, row in zip(letters, scores, strict=True):
        row[0] = f"{letter} {row[0]}"
    parts = [
        aligned(settings, gap=2),
        "training loss, nats per token",
        aligned(curves, gap=2),
        aligned([COMPARISON_HEAD, *scores], gap=2),
    ]
    return "\n\n".join(parts)


def _plot(path: Path, runs: Sequence[Run]) -> None:
    from tools.desk.comparing import against_first, experiments_of
    from tools.desk.pictures import save_picture
    from tools.desk.tables import counted

    experiments = experiments_of(runs)
    title = f"{counted(len(runs), 'run')} of {counted(len(experiments), 'experiment')}"
    save_picture(path, against_first(experiments), title)
    print(f"{path}: {title}")
