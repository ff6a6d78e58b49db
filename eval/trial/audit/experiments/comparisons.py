"""Comparisons that several experiments make, and the noise that they allow for."""

import numpy as np

from eval.rules import Rules
from eval.trial.audit.collector import Collector
from eval.trial.audit.experiments.noise import Noise
from eval.trial.audit.experiments.rules import (
    RULE_FRESH,
    RULE_FUTURE,
    RULE_ROW,
    RULE_SUM,
    RULE_TOKEN,
)
from eval.trial.runner.scorer import Scored

NEAR = 16  # scores before a changed token, where what looks ahead a little would move
FEWEST = 16  # differences of which a mean is taken


class Comparisons:
    """Holds scores against each other and puts what is wrong into the collectors `into`.

    All differences are in nats. Differences are gathered over all experiments, so that `close`
    can test their means: `row_differences` (a score and its own row), `token_differences` (a
    substituted token and the row), `near_differences` (the last scores before a changed token)."""

    def __init__(self, rules: Rules, into: dict[str, Collector]):
        self.tolerance = rules.tolerance
        self.policy = rules.policy
        self.into = into
        self.noise = Noise(rules)
        self.row_differences: list[np.ndarray] = []
        self.token_differences: list[np.ndarray] = []
        self.near_differences: list[np.ndarray] = []

    # --- Noise ---

    def too_noisy(self, difference: np.ndarray) -> bool:
        """Whether reruns differ by more than any audit can allow for."""
        if not len(difference):
            return False
        size = np.abs(difference)
        percentile = np.percentile(size, 95)
        return bool(size.max() > self.tolerance.noise_max or percentile > self.tolerance.noise_p95)

    def report_noise(self, difference: np.ndarray, what: str) -> None:
        """Add the finding that reruns differ by too much."""
        t = self.tolerance
        size = np.abs(difference)
        place = int(size.argmax()) + 2
        self.into["future"].add(
            "INVALID",
            what,
            f"equal losses (95 % within {t.noise_p95} nats, all within {t.noise_max})",
            f"95 % within {np.percentile(size, 95):.3g}, "
            f"largest difference {size.max():.3g} at token {place:,}",
            RULE_FRESH,
        )

    # --- Scores that have to be equal ---

    def prefix(self, before: np.ndarray, after: np.ndarray, what: str) -> None:
        """Scores [n] of the shared prefix of two streams of equal length, within the noise."""
        into = self.into["future"]
        into.ran_check()
        if not len(before):
            return
        difference = after - before
        self.mean("future", difference, what, RULE_FUTURE)
        self.near_differences.append(difference[-NEAR:])
        size = np.abs(difference)
        into.figure("largest_change_before_a_changed_token_nats", float(size.max()))
        limit = self.noise.limit
        if size.max() > limit:
            place = int(size.argmax())
            moved = np.count_nonzero(size > limit)
            into.add(
                "INVALID",
                f"{what}: token {place + 1:,}",
                f"loss {before[place]:.6f} ± {limit:.2g}",
                f"{after[place]:.6f}; {moved:,} of {len(before):,} earlier scores moved",
                RULE_FUTURE,
            )

    def cut(self, pairs: list[tuple[np.ndarray, np.ndarray]], what: str) -> None:
        """Scores of the shared prefixes of streams of different length.

        They may be computed in batches of another shape, which rounds differently: single scores
        may move by rounding, their distribution and their mean may not."""
        into = self.into["future"]
        into.ran_check()
        before = np.concatenate([first for first, _ in pairs])
        after = np.concatenate([second for _, second in pairs])
        if not len(before):
            return
        t = self.tolerance
        difference = after - before
        size = np.abs(difference)
        p95 = float(np.percentile(size, 95))
        mean = float(difference.mean())
        mean_limit = self._mean_limit(difference)
        into.figure("largest_change_before_a_cut_nats", float(size.max()))
        if size.max() > t.noise_max or p95 > t.noise_p95 or abs(mean) > mean_limit:
            place = int(size.argmax())
            into.add(
                "INVALID",
                f"{what}: token {place + 1:,}" if len(pairs) == 1 else what,
                f"loss {before[place]:.6f}; at most {t.noise_max} apart, "
                f"95 % within {t.noise_p95}, mean within {mean_limit:.2g}",
                f"{after[place]:.6f}; 95 % within {p95:.3g}, mean difference {mean:+.3g} nats",
                RULE_FUTURE,
            )

    def mean(self, test: str, difference: np.ndarray, what: str, rule: str) -> None:
        """Rounding prefers no sign: the mean of the differences [n] vanishes as 1/sqrt(n)."""
        finite = difference[np.isfinite(difference)]
        if len(finite) < FEWEST:
            return
        into = self.into[test]
        into.ran_check()
        mean = float(finite.mean())
        limit = self._mean_limit(finite, self.noise.rms)
        into.figure("largest_mean_difference_nats", abs(mean))
        if abs(mean) > limit:
            into.add(
                "INVALID",
                f"{what}: mean of {len(finite):,} differences",
                f"0 ± {limit:.2g} nats",
                f"{mean:+.3g} nats",
                rule,
            )

    def _mean_limit(self, difference: np.ndarray, noise: float = 0.0) -> float:
        spread = max(float(difference.std()), noise)
        return self.tolerance.noise_mean + 4 * spread / np.sqrt(len(difference))

    # --- Distributions ---

    def substitution(
        self, v: int, nll: float, log_row: np.ndarray, limit: float, what: str
    ) -> None:
        """The score of token `v` against the row, asked for when another token stood there."""
        into = self.into["normalisation"]
        into.ran_check()
        signed = nll + float(log_row[v])
        self.token_differences.append(np.array([signed]))
        off = abs(signed)
        into.figure("largest_substitution_error_nats", off)
        if off > limit:
            into.add(
                "INVALID",
                f"{what}, by id {v}",
                f"loss {-log_row[v]:.6f} ± {limit:.2g}",
                f"{nll:.6f}",
                RULE_TOKEN,
            )

    def rows(self, tokens: np.ndarray, positions: np.ndarray, scored: Scored, what: str) -> None:
        """Rows [K, V] at `positions` [K] sum to one and hold the scores of the same run."""
        self._sums(positions, scored.probe, what)
        if scored.nll is not None:
            self._own_scores(tokens, positions, scored, what)

    def _sums(self, positions: np.ndarray, log_rows: np.ndarray, what: str) -> None:
        into = self.into["normalisation"]
        tolerance = self.tolerance.sum
        into.ran_check(len(positions))
        sums = np.exp(np.logaddexp.reduce(log_rows, axis=1))
        into.figure("largest_sum", float(sums.max()))
        into.figure("smallest_sum", float(sums.min()), min)
        into.figure("rows_checked", len(positions), lambda a, b: a + b)
        if sums.max() > 1 + tolerance:
            place = int(sums.argmax())
            over = int(np.count_nonzero(sums > 1 + tolerance))
            into.add(
                "INVALID",
                f"{what}, position {positions[place]:,}",
                f"sum 1 ± {tolerance}",
                f"{sums[place]:.6g}; {over} of {len(sums)} rows above",
                RULE_SUM,
            )
        elif sums.min() < 1 - tolerance:
            place = int(sums.argmin())
            into.add(
                "WARN",
                f"{what}, position {positions[place]:,}",
                f"sum 1 ± {tolerance}",
                f"{sums[place]:.6g}: bits are wasted, none are gained",
                RULE_SUM,
            )

    def _own_scores(
        self, tokens: np.ndarray, positions: np.ndarray, scored: Scored, what: str
    ) -> None:
        inside = positions < len(tokens) - 1
        at = positions[inside]
        in_row = scored.probe[inside][np.arange(len(at)), tokens[at + 1]]
        off = scored.nll[at] + in_row
        off = np.where(np.isnan(off), 0.0, off)
        if not len(off):
            return
        into = self.into["normalisation"]
        self.row_differences.append(off)
        size = np.abs(off)
        into.figure("largest_difference_of_row_and_score_nats", float(size.max()))
        limit = self.noise.limit
        if size.max() > limit:
            place = int(size.argmax())
            score = scored.nll[at[place]]
            count = int(np.count_nonzero(size > limit))
            into.add(
                "INVALID",
                f"{what}, position {at[place]:,}",
                f"loss {score - off[place]:.6f} ± {limit:.2g} as its own row says",
                f"{score:.6f}; {count} of {len(at)} probed positions differ",
                RULE_ROW,
            )

    # --- The end ---

    def close(self) -> None:
        """Test the means of the gathered differences, and state the tolerances in the report."""
        self._gathered("normalisation", self.row_differences, "scores and their own rows", RULE_ROW)
        self._gathered(
            "normalisation",
            self.token_differences,
            "substituted tokens and their rows",
            RULE_TOKEN,
        )
        self._gathered(
            "future",
            self.near_differences,
            f"the last {NEAR} scores before a changed token",
            RULE_FUTURE,
        )
        largest = self.noise.largest
        if largest > self.tolerance.noise_bfloat16:
            self.into["future"].add(
                "WARN",
                "reruns of equal streams",
                f"differences of rounding, at most {self.tolerance.noise_bfloat16:g} nats",
                f"{largest:.3g} nats: more than bfloat16 kernels explain, "
                "and room for a gain up to the tolerance",
                RULE_FRESH,
            )
        self._state_tolerances()
        self.into["future"].figure("noise_floor_nats", largest)

    def _gathered(self, test: str, held: list[np.ndarray], what: str, rule: str) -> None:
        self.mean(test, np.concatenate([np.zeros(0), *held]), what, rule)

    def _state_tolerances(self) -> None:
        t = self.tolerance
        source = (
            f"99th percentile {self.noise.p99:.3g} nats (largest {self.noise.largest:.3g}) "
            f"between reruns of equal streams, times {t.noise_factor:g}, at least {t.exact:g}, "
            f"at most {t.noise_limit:g}; "
            f"the mean of the signed differences: {t.noise_mean:g} + 4 standard errors"
        )
        for name in ("future", "normalisation", "documents"):
            self.into[name].tolerance = f"{self.noise.limit:.3g} nats"
            self.into[name].tolerance_source = source
        self.into["normalisation"].tolerance += f"; sums 1 ± {t.sum:g}"
