"""Runs and experiments as rows of text, for the terminal and for Markdown."""

from collections.abc import Sequence

from tools.desk.comparing import Row, differing
from tools.desk.reading import Run, State
from tools.desk.statistics import CONFIDENCE, Difference

LIST_HEAD = ["run", "state", "preset", "seed", "step", "val_bpb", "train s", "bytes", "settings"]
COMPARISON_HEAD = [
    "experiment",
    "n",
    "val_bpb",
    "sd",
    "difference",
    f"{CONFIDENCE:.0%} interval",
    "p",
    "test",
    "train s",
    "bytes",
]
COMPARISON_ALIGNMENT = ["---", *["---:"] * 6, "---", "---:", "---:"]


def list_rows(runs: Sequence[Run]) -> list[list[str]]:
    """One row a run, below the head; settings are those that differ from the preset."""
    rows = [LIST_HEAD]
    for run in runs:
        settings = [f"{name}={setting.value}" for name, setting in run.settings.items()]
        step = f"{run.step:,}"
        if run.state is not State.DONE and run.steps is not None:
            step = f"{step}/{run.steps:,}"
        state = run.state.value
        if run.state is State.RUNNING:
            state = f"running: {run.phase}"
        rows.append(
            [
                str(run.folder),
                state,
                run.preset,
                str(run.seed),
                step,
                number(run.val_bpb, 5),
                number(run.train_s, 1),
                whole(run.bytes_total),
                " ".join(settings),
            ]
        )
    return rows


def settings_rows(firsts: Sequence[Run], labels: Sequence[str]) -> list[list[str]]:
    """What tells experiments apart, a setting a row; `firsts` holds one run of each."""
    facts = differing(firsts)
    rows = [["", *labels]]
    for name, values in facts.items():
        rows.append([name, *(values[run.folder] for run in firsts)])
    return rows if facts else []


def comparison_rows(rows: Sequence[Row]) -> list[list[str]]:
    """One row an experiment, without the head; the first is the base."""
    return [_comparison_row(row, is_base=row is rows[0]) for row in rows]


def _comparison_row(row: Row, is_base: bool) -> list[str]:
    experiment = row.experiment
    return [
        experiment.label,
        str(len(experiment.scores())),
        number(experiment.mean(), 5),
        number(experiment.deviation(), 5),
        *(["base", "", "", ""] if is_base else _difference_cells(row.difference)),
        number(experiment.slowest(), 1),
        whole(experiment.largest()),
    ]


def _difference_cells(found: Difference | None) -> list[str]:
    if found is None:
        return ["", "", "", "no score"]
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f"{found.low:+.5f} to {found.high:+.5f}"
    p = "" if found.p is None else f"{found.p:.2g}"
    return [f"{found.mean:+.5f}", interval, p, found.test]


def counted(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:,.{decimals}f}"


def whole(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
