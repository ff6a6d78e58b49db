"""What an experiment is, and the engine that runs experiments."""

import itertools
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from eval.trial.audit.collector import Collector
from eval.trial.audit.experiments.rules import RULE_CONTRACT
from eval.trial.runner.scorer import Run, Scored, Scorer, Stream
from eval.trial.sandbox.machine import cores


class Experiment(ABC):
    """One question to a scorer: what to score, and what the scores say.

    An experiment makes its random draws when it is made, and for the second run in
    `later_streams`; its other methods draw nothing. `label` names its run where it has one of its
    own."""

    label = ""
    measures_noise = False  # judged first: the others hold their differences against that noise

    @abstractmethod
    def streams(self) -> list[Stream]:
        """What to score."""

    def later_streams(self, scored: Sequence[Scored]) -> list[Stream]:
        """What to score in a second run, given the scores of `streams()`. Asked once."""
        return []

    @abstractmethod
    def judge(self, scored: Sequence[Scored]) -> None:
        """Put findings into the collectors.

        `scored` belongs to `streams()`, then to `later_streams()`."""


class Watch(Protocol):
    """Who wants to know of the runs. `begin` may raise, and the run does not begin."""

    def begin(self, label: str) -> None:
        """A run of this name is about to begin."""

    def finish(self, tokens: int) -> None:
        """It has ended and has scored so many tokens."""


class Engine:
    """Runs experiments on one scorer and sees to it that each run keeps the contract.

    `coverage` collects what breaks the contract; `watch` is told of each run. `x` int64 [N] is the
    real stream: what the scorer must not rule out."""

    def __init__(self, scorer: Scorer, coverage: Collector, watch: Watch, x: np.ndarray):
        self.scorer = scorer
        self.coverage = coverage
        self.watch = watch
        self.x = x

    def run(self, experiment: Experiment) -> None:
        """A run for this experiment alone. Raises RunFailed."""
        self.run_apart([experiment])

    def run_apart(self, experiments: Sequence[Experiment]) -> None:
        """A run for each experiment, as many side by side as this machine has room for.

        All draw before the first begins. Raises RunFailed."""
        runs = [Run(experiment.streams(), experiment.label) for experiment in experiments]
        left = list(zip(experiments, runs, strict=True))
        while left:
            at_once = self.scorer.at_once() if len(left) > 1 else 1
            now = left[:at_once]
            left = left[at_once:]
            scored = self._score([run for _, run in now])
            for (experiment, _), own in zip(now, scored, strict=True):
                experiment.judge(own)

    def run_together(self, experiments: Sequence[Experiment], first: str, second: str) -> None:
        """Two runs, named `first` and `second`, that all experiments share. Raises RunFailed.

        The second one has another number of threads, so that reruns of equal streams measure what
        that changes too."""
        scored = self._score_shared([e.streams() for e in experiments], first)
        asked_later = [
            experiment.later_streams(own)
            for experiment, own in zip(experiments, scored, strict=True)
        ]
        scored_later = self._score_shared(asked_later, second, other_threads())
        judged = list(zip(experiments, scored, scored_later, strict=True))
        judged.sort(key=lambda one: not one[0].measures_noise)
        for experiment, own, later in judged:
            experiment.judge([*own, *later])

    def _score_shared(
        self, batches: Sequence[Sequence[Stream]], label: str, threads: int | None = None
    ) -> list[list[Scored]]:
        """The scores of each batch, from one run with the streams of all."""
        (all_scored,) = self._score([Run(list(itertools.chain(*batches)), label, threads)])
        scored = iter(all_scored)
        return [list(itertools.islice(scored, len(batch))) for batch in batches]

    def _score(self, runs: Sequence[Run]) -> list[list[Scored]]:
        """The scores of each run; all runs go side by side."""
        self.watch.begin(" | ".join(run.label for run in runs))
        scored = self.scorer.score_apart(runs)
        for run, own in zip(runs, scored, strict=True):
            self.watch.finish(sum(len(stream.tokens) for stream in run.streams))
            self._judge_contract(run.streams, run.label, own)
        return scored

    def _judge_contract(
        self, streams: Sequence[Stream], label: str, scored: Sequence[Scored]
    ) -> None:
        for index, result in enumerate(scored):
            where = f"{label} run"
            if len(scored) > 1:
                size = len(streams[index].tokens)
                where += f", stream {index + 1} of {len(scored)} ({size:,} tokens)"
            for problem in result.problems:
                self.coverage.add(
                    "INVALID",
                    where,
                    "one finite, non-negative loss for every target",
                    problem,
                    RULE_CONTRACT,
                )
            if len(result.ruled_out):
                self._judge_ruled_out(streams[index], result, where)
        self.coverage.ran_check()

    def _judge_ruled_out(self, stream: Stream, scored: Scored, where: str) -> None:
        """Probability 0 is fatal where the real stream has the token.

        A token that it never has may be ruled out; one that it has elsewhere is worth a remark."""
        if np.array_equal(stream.tokens, self.x):
            self.coverage.add(
                "INVALID",
                where,
                "one finite, non-negative loss for every target",
                str(scored.impossible()),
                RULE_CONTRACT,
            )
            return
        tokens = stream.tokens[scored.ruled_out + 1]
        of_the_split = np.isin(tokens, self.x)
        never = int(np.count_nonzero(~of_the_split))
        self.coverage.figure("targets_ruled_out_that_the_split_never_has", never, operator.add)
        if of_the_split.any():
            place = int(of_the_split.argmax())
            self.coverage.add(
                "WARN",
                f"{where}, target {scored.ruled_out[place] + 1:,}",
                f"a probability above 0 for id {tokens[place]}, which the split has elsewhere",
                f"0; {np.count_nonzero(of_the_split):,} such targets in this stream",
                RULE_CONTRACT,
            )


def other_threads() -> int | None:
    """Another number of threads than a scorer's libraries take here; None on a single core."""
    several = cores() > 1
    usual = os.environ.get("OMP_NUM_THREADS", "")
    if usual.isdecimal() and int(usual) == 1:
        return 2 if several else None
    return 1 if several else None
