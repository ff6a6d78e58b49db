"""Runs as experiments: those that differ in their seed alone are one."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tools.desk.reading import Run
from tools.desk.statistics import Difference, difference


@dataclass(frozen=True)
class Experiment:
    """Runs of equal code, settings and data."""

    label: str  # what tells it from the others
    runs: list[Run]

    def scores(self) -> dict[int, float]:
        """val_bpb by seed, of the runs that are done."""
        return {run.seed: run.val_bpb for run in self.runs if run.val_bpb is not None}

    def mean(self) -> float | None:
        scores = self.scores().values()
        return statistics.fmean(scores) if scores else None

    def deviation(self) -> float | None:
        """Of the sample, over seeds."""
        scores = self.scores().values()
        return statistics.stdev(scores) if len(scores) > 1 else None

    def slowest(self) -> float | None:
        """Training seconds."""
        return max((run.train_s for run in self.runs if run.train_s is not None), default=None)

    def largest(self) -> int | None:
        """Bytes of code and artifact."""
        return max((run.bytes_total for run in self.runs if run.bytes_total), default=None)


@dataclass(frozen=True)
class Row:
    """An experiment beside the base; the base itself differs from nothing."""

    experiment: Experiment
    difference: Difference | None


def experiments_of(runs: Sequence[Run]) -> list[Experiment]:
    """In the order of the runs."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.experiment, []).append(run)
    firsts = [group[0] for group in groups.values()]
    facts = differing(firsts)
    experiments = []
    for first, group in zip(firsts, groups.values(), strict=True):
        own = [f"{name}={values[first.folder]}" for name, values in facts.items()]
        experiments.append(Experiment(", ".join(own) or first.name, group))
    return experiments


def differing(runs: Sequence[Run]) -> dict[str, dict]:
    """What tells these runs apart: by name of the fact, its value in each run's folder.

    A setting that a run leaves alone has the default that another run's log prints.
    """
    defaults = {}
    for run in runs:
        defaults |= {name: setting.default for name, setting in run.settings.items()}
    facts = {"preset": {run.folder: run.preset for run in runs}}
    for name, default in defaults.items():
        facts[name] = {
            run.folder: run.settings[name].value if name in run.settings else default
            for run in runs
        }
    facts["script"] = {run.folder: run.code[:8] for run in runs}
    facts["data"] = {run.folder: run.corpus[:8] for run in runs}
    return {name: values for name, values in facts.items() if len(set(values.values())) > 1}


def against_first(experiments: Sequence[Experiment]) -> list[Row]:
    """The first experiment is the base."""
    base = experiments[0]
    rows = [Row(base, None)]
    for experiment in experiments[1:]:
        rows.append(Row(experiment, difference(base.scores(), experiment.scores())))
    return rows


def losses_at_last_common_step(runs: Sequence[Run]) -> tuple[int, list[float]] | None:
    """The last step at which every run logged its training loss, and those losses, nats a token."""
    by_run = []
    for run in runs:
        by_run.append({point.step: point.train_loss for point in run.train_points()})
    common = set.intersection(*map(set, by_run)) if by_run else set()
    if not common:
        return None
    step = max(common)
    return step, [losses[step] for losses in by_run]
