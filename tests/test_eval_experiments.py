"""The engine that runs experiments, and the statistics of the canary and of the noise."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from eval.rules import load_rules
from eval.trial.audit.collector import Collector
from eval.trial.audit.experiments.canary import LAMBDAS, Canary
from eval.trial.audit.experiments.experiment import Engine, Experiment
from eval.trial.audit.experiments.noise import Noise
from eval.trial.runner.scorer import Run, Scored, Stream


class Echo(Experiment):
    """Streams of given lengths in two runs; `judged` notes the lengths behind the scores."""

    def __init__(self, judged: list[list[int]], sizes: list[int], measures_noise: bool = False):
        self.judged = judged
        self.sizes = sizes
        self.measures_noise = measures_noise

    def streams(self) -> list[Stream]:
        return [Stream(np.full(size, 5)) for size in self.sizes]

    def later_streams(self, scored: Sequence[Scored]) -> list[Stream]:
        assert [len(one.nll) for one in scored] == self.sizes
        return [Stream(np.full(size + 100, 5)) for size in self.sizes[1:]]

    def judge(self, scored: Sequence[Scored]) -> None:
        self.judged.append([len(one.nll) for one in scored])


def one_loss_a_token(stream: Stream) -> Scored:
    return Scored(nll=stream.tokens * 1.0)


class OneLossAToken:
    """A scorer on a machine with room for so many runs; `sides` are those it had side by side."""

    def __init__(self, room: int = 1):
        self.room = room
        self.sides: list[list[str]] = []

    def at_once(self) -> int:
        return self.room

    def score_apart(self, runs: Sequence[Run]) -> list[list[Scored]]:
        self.sides.append([run.label for run in runs])
        return [list(map(one_loss_a_token, run.streams)) for run in runs]


def test_runs_go_side_by_side_as_far_as_there_is_room():
    told: list[str | int] = []
    judged: list[list[int]] = []
    scorer = OneLossAToken(room=2)
    watch = SimpleNamespace(begin=told.append, finish=told.append)
    engine = Engine(scorer, Collector("coverage"), watch, np.zeros(9))
    experiments = [Echo(judged, [size]) for size in (2, 3, 4)]
    for experiment, name in zip(experiments, "abc", strict=True):
        experiment.label = name
    engine.run_apart(experiments)
    assert scorer.sides == [["a", "b"], ["c"]] and judged == [[2], [3], [4]]
    assert told == ["a | b", 2, 3, "c", 4]


def test_every_experiment_gets_its_own_scores_and_noise_comes_first():
    told: list[str | int] = []
    watch = SimpleNamespace(begin=told.append, finish=told.append)
    judged: list[list[int]] = []
    engine = Engine(OneLossAToken(), Collector("coverage"), watch, np.zeros(9))
    experiments = [Echo(judged, [2, 3]), Echo(judged, []), Echo(judged, [4, 5, 6], True)]
    engine.run_together(experiments, "part one", "part two")
    assert judged == [[4, 5, 6, 105, 106], [2, 3, 103], []]
    assert told == ["part one", 20, "part two", 314]


# --- Statistics of the canary ---


def canary(log2_q_over_g: np.ndarray) -> dict[str, float]:
    """The figures of the test, and whether it says INVALID."""
    into = Collector("canary")
    evidence = Canary()
    evidence.note(log2_q_over_g, np.zeros_like(log2_q_over_g))
    evidence.judge(load_rules().tolerance, into)
    result = into.result("")
    return result.figures | {"invalid": result.verdict == "INVALID"}


def two_distributions(rng: np.random.Generator, n: int, excess: float) -> np.ndarray:
    """log2 q/g at n draws from g; q is another distribution over 50 tokens, times 1 + excess."""
    g = rng.dirichlet(np.full(50, 1.0))
    q = rng.dirichlet(np.full(50, 1.0))
    v = rng.choice(50, size=n, p=g)
    return np.log2(q[v] * (1 + excess) / g[v])


def test_canary_never_accuses_a_distribution():
    """500 valid scorers, however far from g.

    The evidence stays below 40 bits, and its exponential has mean at most 1."""
    rng = np.random.default_rng(1)
    bits = [canary(two_distributions(rng, 400, 0.0))["evidence_bits"] for _ in range(500)]
    assert max(bits) < 15
    assert np.mean(np.exp2(bits)) < 1.5


def test_canary_sees_a_sum_slightly_above_one_through_a_large_divergence():
    """q is 0.3 bits per token worse than g, so the plain likelihood ratio is hopeless.

    A sum of 1.1 shows all the same."""
    rng = np.random.default_rng(2)
    figures = canary(two_distributions(rng, 100_000, 0.10))
    assert figures["log_likelihood_ratio_bits"] < -10_000
    assert figures["invalid"] and figures["smallest_visible_excess_of_the_sum"] < 0.1
    assert not canary(two_distributions(np.random.default_rng(2), 100_000, 0.0))["invalid"]


def test_bets_are_fractions_of_the_stake():
    assert LAMBDAS.max() == 1 and LAMBDAS.min() > 0


def test_noise_limit_has_a_floor_and_a_ceiling():
    rules = load_rules()
    noise = Noise(rules)
    assert noise.limit == rules.tolerance.exact
    noise.add(np.array([0.01, -0.02] * 100))
    assert noise.limit == pytest.approx(0.08)
    # One large difference is no noise that later ones may hide in.
    noise.add(np.append(np.zeros(999), 0.12))
    assert noise.limit == pytest.approx(0.08)
    noise.add(np.array([10.0]))
    assert noise.limit == rules.tolerance.noise_limit
