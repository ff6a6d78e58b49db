"""Black-box tests of one scorer: future, normalisation, canary, documents. What they rest on:

a deterministic scorer whose score(x[:n]) equals score(x)[:n] for every n, and whose next-token probabilities sum to one after every
prefix, gives a real code length, however it computes it. Both are sampled here at positions that the scorer cannot foresee.

Runs, in this order; every long run is a single stream, so that it looks like the scoring of the record itself:

* official: the real stream, nothing probed. All claims are about this run.
* probed: the real stream but for its last tokens (at most 64), with probes, some at the very end. Scores before those must not move: not by
  probing, and not by a change that only a scorer that knows the whole stream could notice; further runs tell the two apart where they do.
  Rows must sum to one and hold the scores.
* splice: as long as the real stream and equal to it up to a secret position t; then another token v, then (in one of them, for the
  fresh-slice test) training documents, then text sampled from the referee's own n-gram model. Scores before t must not move (nothing looks
  ahead, whatever gate there is on length, opening or a hash of the stream); the score of v must be what the probed run said; and the sampled
  text must not be scored better than chance allows.
* tail cut (full): the real stream without its last tokens, so that its length differs.
* many, parts one and two: hundreds of short streams in shuffled order. Pairs share a prefix and part at one secret position, after which
  the second stream takes a token drawn from the first one's own distribution; short streams are probed at every position; after some
  prefixes every token of the vocabulary is tried; some streams come twice.
* shortest: streams of one and two tokens, which the contract allows.

Scores that ought to be equal may differ by rounding, and reruns of equal streams measure by how much. A single difference is held against
that noise, which a scorer can inflate by jitter; the mean of the signed differences shrinks with their number whatever the noise, so a gain
that hides in the jitter of many tokens shows there.
"""

from collections.abc import Callable

import numpy as np

from eval.trial.audit.collector import Collector
from eval.trial.audit.experiments.comparisons import NEAR
from eval.trial.audit.experiments.long_runs import CONTROL_AT, LongRuns
from eval.trial.audit.experiments.rules import (
    RULE_FRESH,
    RULE_FUTURE,
    RULE_ROW,
    RULE_TOKEN,
)
from eval.trial.audit.experiments.short_streams import (
    ShortStreams,
)
from eval.trial.runner.scorer import RunFailed, Stream
from eval.trial.sandbox.job import WALL_CLOCK


class Behaviour(LongRuns, ShortStreams):
    """All behaviour tests of one artifact on one validation stream `x` (int64 [N]).

    Results go to `into`, one Collector for each test."""

    def run_all(self, step: Callable[[str], None]) -> None:
        """Everything after the official run. `step` is told the name of each run before it starts."""
        splices = self._splice_points()
        probed = self._probed(step, splices)
        at_control = min(splices, key=lambda t: abs(t - CONTROL_AT * len(self.x)))
        for t in splices:
            step("splice")
            self._splice(t, probed, self.control if t == at_control else None)
        if self.profile.tail_cut:
            step("tail cut")
            self._tail(probed)
        self._canary()
        self._many(step)
        self._close()
        step("shortest")
        try:
            self._score([Stream(self.x[:1], np.array([0])), Stream(self.x[:2])], "shortest streams")
        except RunFailed as error:  # a fault, but no reason to leave other tests undone
            failed(error, self.into)

    def _close(self) -> None:
        t = self.rules.tolerance
        for test, held, what, rule in (
            ("normalisation", self.row_differences, "scores and their own rows", RULE_ROW),
            (
                "normalisation",
                self.token_differences,
                "substituted tokens and their rows",
                RULE_TOKEN,
            ),
            (
                "future",
                self.near_differences,
                f"the last {NEAR} scores before a changed token",
                RULE_FUTURE,
            ),
        ):
            self._check_mean(test, np.concatenate([np.zeros(0), *held]), what, rule)
        if self.noise.largest > t.noise_bfloat16:
            self.into["future"].add(
                "WARN", "reruns of equal streams", f"differences of rounding, at most {t.noise_bfloat16:g} nats",
                f"{self.noise.largest:.3g} nats: more than bfloat16 kernels explain, and room for a gain up to the tolerance", RULE_FRESH,
            )  # fmt: skip
        source = (
            f"99th percentile {self.noise.p99:.3g} nats (largest {self.noise.largest:.3g}) between reruns of equal streams, times {t.noise_factor:g}, "
            f"at least {t.exact:g}, at most {t.noise_limit:g}; the mean of the signed differences: {t.noise_mean:g} + 4 standard errors"
        )
        for name in ("future", "normalisation", "documents"):
            self.into[name].tolerance = f"{self.noise.limit:.3g} nats" + (
                f"; sums 1 ± {self.rules.tolerance.sum:g}" if name == "normalisation" else ""
            )
            self.into[name].tolerance_source = source
        self.into["future"].figure("noise_floor_nats", self.noise.largest)


def failed(error: RunFailed, into: dict[str, Collector]) -> None:
    """A run that did not end: said once, as a matter of coverage."""
    into["coverage"].ran_check()
    found = error.outcome.why()
    if error.outcome.killed == WALL_CLOCK:
        found += f", after {error.outcome.seconds:.0f} s (--wall-seconds allows more)"
    into["coverage"].add(
        "INVALID",
        f"{error.args[0].split(':')[0]} run",
        "exit code 0 and scores",
        found,
        "scoring contract",
    )
