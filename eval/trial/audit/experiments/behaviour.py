"""The behaviour tests of one artifact: which experiments run, and in which order.

What they rest on: a deterministic scorer whose score(x[:n]) equals score(x)[:n] for every n, and
whose next-token probabilities sum to one after every prefix, gives a real code length, however it
computes it. Both are sampled here at positions that the scorer cannot foresee.

Every long run is a single stream, so that it looks like the scoring of the record itself:

* official: the real stream, nothing probed. All claims are about this run.
* probed: the real stream but for its last tokens (at most 64), with probes, some at the very end.
  Scores before those must not move: not by probing, and not by a change that only a scorer that
  knows the whole stream could notice; further runs tell the two apart where they do. Rows must sum
  to one and hold the scores.
* splice: as long as the real stream and equal to it up to a secret position t; then another token
  v, then (in one of them, for the fresh-slice test) training documents, then text sampled from the
  referee's own n-gram model. Scores before t must not move (nothing looks ahead, whatever gate
  there is on length, opening or a hash of the stream); the score of v must be what the probed run
  said; and the sampled text must not be scored better than chance allows.
* bursts: the real stream with short bursts of known probability at hundreds of places
  (bursts.py). What is scored there better than chance allows is no probability.
* tail cut (full): the real stream without its last tokens, so that its length differs.
* many, parts one and two: hundreds of short streams in shuffled order. Pairs share a prefix and
  part at one secret position, after which the second stream takes a token drawn from the first
  one's own distribution; short streams are probed at every position; after some prefixes every
  token of the vocabulary is tried; some streams come twice.
* shortest: streams of one and two tokens, which the contract allows.

Scores that should be equal may differ by rounding, and reruns of equal streams measure by how
much. A single difference is held against that noise, which a scorer can inflate by jitter; the
mean of the signed differences shrinks with their number whatever the noise, so a gain that hides
in the jitter of many tokens shows there.
"""

import numpy as np

from eval.rules import Profile
from eval.trial.audit.collector import Collector
from eval.trial.audit.experiments.bursts import Bursts
from eval.trial.audit.experiments.canary import Canary
from eval.trial.audit.experiments.comparisons import Comparisons
from eval.trial.audit.experiments.documents import DocumentBorders
from eval.trial.audit.experiments.experiment import Engine, Experiment
from eval.trial.audit.experiments.fresh import FreshText
from eval.trial.audit.experiments.long_runs import (
    CONTROL_AT,
    Official,
    OfficialAgain,
    Probed,
    ProbedUnchanged,
    Splice,
    TailCut,
    splice_points,
)
from eval.trial.audit.experiments.material import Material
from eval.trial.audit.experiments.pairs import TINY, Pairs, Repeats
from eval.trial.audit.experiments.rules import RULE_CONTRACT
from eval.trial.audit.experiments.short_streams import (
    SHORT_SWEEP,
    ProbedEverywhere,
    Shortest,
    draw_sweeps,
)
from eval.trial.runner.scorer import RunFailed
from eval.trial.sandbox.job import WALL_CLOCK


class Behaviour:
    """All behaviour tests of one artifact; results go to the collectors of `compare`."""

    def __init__(self, engine: Engine, material: Material, compare: Comparisons):
        self.engine = engine
        self.material = material
        self.compare = compare

    def run_official(self) -> np.ndarray | None:
        """nll float64 [N-1] of the record's own run, None where it broke the contract."""
        self.engine.run(Official(self.material))
        return self.material.official

    def run_all(self, fresh: FreshText | None) -> None:
        """Everything after the official run; `fresh` where that test is wanted.

        Raises RunFailed when a run does not come to its end."""
        splices = splice_points(self.material)
        probed = Probed(self.material, self.compare, splices)
        rows = self._run_probed(probed)
        canary = Canary()
        wished = CONTROL_AT * len(self.material.x)
        with_control = min(splices, key=lambda t: abs(t - wished))
        runs: list[Experiment] = []
        for t in splices:
            control = fresh.control() if fresh is not None and t == with_control else None
            runs.append(Splice(probed, t, rows, control, canary))
        if self.material.profile.tail_cut:
            runs.append(TailCut(probed, rows))
        in_real_text = Canary("burst_", " in bursts inside the real stream", apart=True)
        if self.material.profile.bursts:
            runs.append(Bursts(self.material, self.compare, in_real_text))
        self.engine.run_apart(runs)
        for run in runs:
            if isinstance(run, Splice) and run.control_scored is not None:
                fresh.later = run.control_scored
        for evidence in (canary, in_real_text):
            evidence.judge(self.compare.tolerance, self.compare.into["canary"])
        self._run_many(fresh)
        self.compare.close()

    def _run_probed(self, probed: Probed) -> dict[int, np.ndarray]:
        """Two more runs say why its scores moved, if they did: noise, the probes, or the tail.

        Returns the probed rows [V], by position."""
        self.engine.run(probed)
        if probed.moved:
            again = OfficialAgain(self.material, self.compare)
            self.engine.run(again)
            if again.quiet:
                self.engine.run(ProbedUnchanged(probed))
        return probed.judge_rows()

    def _run_many(self, fresh: FreshText | None) -> None:
        pairs = Pairs(self.material, self.compare)
        experiments: list[Experiment] = [
            pairs,
            ProbedEverywhere(self.material, self.compare),
            *draw_sweeps(self.material, self.compare),
            DocumentBorders(self.material, self.compare),
            Repeats(pairs),
            Shortest(self.material),
        ]
        if fresh is not None:
            experiments.append(fresh)
        self.engine.run_together(experiments, "many, part one", "many, part two")


def expected_work(profile: Profile, tokens: int, vocab_size: int) -> tuple[int, int]:
    """(runs, tokens) of an artifact beside its official run, about.

    `tokens` is the length of the real stream. Reruns that noise asks for are not foreseen."""
    long = 1 + profile.late_splices + profile.tail_cut + bool(profile.bursts)
    swept = min(vocab_size, profile.sweep_limit)
    short = (
        2 * profile.pairs * profile.pair_tokens // 5
        + 2 * profile.tiny_pairs * TINY[1]
        + profile.dense_tokens
        + 2 * profile.sweeps * swept * SHORT_SWEEP[1]
        + 4 * min(profile.fresh_tokens, tokens)
    )
    return long + 2, long * tokens + short


def failed(error: RunFailed, into: dict[str, Collector]) -> None:
    """A run that did not end: said once, as a matter of coverage."""
    into["coverage"].ran_check()
    found = error.outcome.why()
    if error.outcome.killed == WALL_CLOCK:
        found += f", after {error.outcome.seconds:.0f} s (--wall-seconds allows more)"
    into["coverage"].add(
        "INVALID",
        f"{error.label} run",
        "exit code 0 and scores",
        found,
        RULE_CONTRACT,
    )
