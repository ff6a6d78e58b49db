"""Comparisons that the experiments share."""

from collections.abc import Sequence

import numpy as np

from eval.rules import Profile, Rules
from eval.text.corpus.bytes import BOS
from eval.text.language.generator import KneserNey
from eval.trial.audit.collector import Collector
from eval.trial.audit.experiments.noise import Noise
from eval.trial.audit.experiments.rules import (
    RULE_FRESH,
    RULE_FUTURE,
    RULE_ROW,
    RULE_SUM,
    RULE_TOKEN,
)
from eval.trial.runner.scorer import Scored, Scorer, Stream

NEAR = 16  # scores before a changed token, where what looks ahead a little would move
FEWEST = 16  # differences of which a mean is taken


class Comparisons:
    """One scorer, one validation stream `x` (int64 [N]), and what every experiment compares with."""

    def __init__(
        self,
        scorer: Scorer,
        x: np.ndarray,
        generator: KneserNey,
        profile: Profile,
        rules: Rules,
        rng: np.random.Generator,
        into: dict[str, Collector],
    ):
        self.scorer, self.x, self.generator = scorer, x, generator
        self.profile, self.rules, self.rng, self.into = profile, rules, rng, into
        self.noise = Noise(rules)
        self.official: np.ndarray | None = None
        self.lengths = (
            np.diff(np.append(np.flatnonzero(x == BOS), len(x)))
            if (x == BOS).any()
            else np.array([len(x)])
        )
        self.extra_streams: list[Stream] = []  # scored with part one, for the fresh-slice test
        self.extra_scored: list[Scored] = []
        self.control: np.ndarray | None = (
            None  # documents that one splice puts behind the real stream, for the same test
        )
        self.control_scored: tuple[np.ndarray, np.ndarray] | None = (
            None  # those of them that had room, with their losses
        )
        self.log_ratios: list[np.ndarray] = []  # log2 q - log2 g over sampled text
        self.row_differences: list[
            np.ndarray
        ] = []  # signed, nats: score - its own row's, over all probed positions
        self.token_differences: list[
            np.ndarray
        ] = []  # score of a substituted token - what the row said
        self.near_differences: list[
            np.ndarray
        ] = []  # the last scores before a changed token, after - before
        self.tail_point = len(x) - 2 - int(rng.integers(1, min(64, len(x) // 4)))

    def _score(self, streams: Sequence[Stream], label: str) -> list[Scored]:
        scored = self.scorer.score(streams, label)
        for index, result in enumerate(scored):
            for problem in result.problems:
                where = f"{label} run" + (
                    f", stream {index + 1} of {len(scored)} ({len(streams[index].tokens):,} tokens)"
                    if len(scored) > 1
                    else ""
                )
                self.into["coverage"].add(
                    "INVALID",
                    where,
                    "one finite, non-negative loss for every target",
                    problem,
                    "scoring contract",
                )
        self.into["coverage"].ran_check()
        return scored

    def _too_noisy(self, difference: np.ndarray) -> bool:
        t = self.rules.tolerance
        if not len(difference):
            return False
        return bool(
            np.abs(difference).max() > t.noise_max
            or np.percentile(np.abs(difference), 95) > t.noise_p95
        )

    def _report_noise(self, difference: np.ndarray, what: str) -> None:
        t, size = self.rules.tolerance, np.abs(difference)
        found = f"95 % within {np.percentile(size, 95):.3g}, largest difference {size.max():.3g} at token {int(size.argmax()) + 2:,}"
        self.into["future"].add(
            "INVALID",
            what,
            f"equal losses (95 % within {t.noise_p95} nats, all within {t.noise_max})",
            found,
            RULE_FRESH,
        )

    def _sampled(self, head: np.ndarray, length: int) -> np.ndarray:
        """`head` continued to `length` tokens by documents of the n-gram model; document lengths are those of the real stream."""
        missing = length - len(head)
        sizes = []
        while sum(sizes) + len(sizes) < missing + 1:
            sizes.append(int(self.rng.choice(self.lengths)))
        prefixes = [head] + [np.array([BOS])] * (len(sizes) - 1)
        grown = self.generator.sample(self.rng, prefixes, np.array(sizes))
        parts = [head, grown[0]] + [
            part for tokens in grown[1:] for part in (np.array([BOS]), tokens)
        ]
        return np.concatenate(parts)[:length]

    def _other_token(self, log_row: np.ndarray | None, actual: int) -> int:
        """A token other than `actual`, drawn from the submission's own distribution where it is known."""
        if log_row is not None:
            p = np.exp(log_row - log_row.max())
            p[actual] = 0.0
            p[BOS] = 0.0  # a BOS would start a new document and change more than one token
            if p.sum() > 0:
                return int(self.rng.choice(len(p), p=p / p.sum()))
        p = self.generator.bottom.copy()
        p[actual] = 0.0
        return int(self.rng.choice(len(p), p=p / p.sum()))

    def _other_tail(self, tail: np.ndarray) -> np.ndarray:
        """Real text from elsewhere, of the same length, that differs in its first token."""
        for _ in range(20):
            start = int(self.rng.integers(0, len(self.x) - len(tail)))
            other = self.x[start : start + len(tail)].copy()
            if len(other) and other[0] != tail[0]:
                return other
        return (tail + 1) % self.scorer.vocab_size

    def _compare_prefix(self, before: np.ndarray, after: np.ndarray, what: str) -> None:
        """Streams of equal length: every shared score within the noise limit."""
        self.into["future"].ran_check()
        if not len(before):
            return
        difference = after - before
        self._check_mean("future", difference, what, RULE_FUTURE)
        self.near_differences.append(difference[-NEAR:])
        largest = float(np.abs(difference).max())
        self.into["future"].figure("largest_change_before_a_changed_token_nats", largest)
        if largest > self.noise.limit:
            place = int(np.abs(difference).argmax())
            self.into["future"].add(
                "INVALID",
                f"{what}: token {place + 1:,}",
                f"loss {before[place]:.6f} ± {self.noise.limit:.2g}",
                f"{after[place]:.6f}; {np.count_nonzero(np.abs(difference) > self.noise.limit):,} of {len(before):,} earlier scores moved",
                RULE_FUTURE,
            )

    def _mean_limit(self, difference: np.ndarray, noise: float = 0.0) -> float:
        return self.rules.tolerance.noise_mean + 4 * max(float(difference.std()), noise) / np.sqrt(
            len(difference)
        )

    def _check_mean(self, test: str, difference: np.ndarray, what: str, rule: str) -> None:
        """Rounding has no sign that it prefers: the mean of the differences [n], nats, vanishes as 1/sqrt(n)."""
        difference = difference[np.isfinite(difference)]
        if len(difference) < FEWEST:
            return
        self.into[test].ran_check()
        mean, limit = float(difference.mean()), self._mean_limit(difference, self.noise.rms)
        self.into[test].figure("largest_mean_difference_nats", abs(mean))
        if abs(mean) > limit:
            self.into[test].add(
                "INVALID",
                f"{what}: mean of {len(difference):,} differences",
                f"0 ± {limit:.2g} nats",
                f"{mean:+.3g} nats",
                rule,
            )

    def _compare_cut(self, pairs: list[tuple[np.ndarray, np.ndarray]], what: str) -> None:
        """Streams of different length may be computed in other batch shapes, which rounds differently: single scores may move by rounding,
        their distribution and their mean may not."""
        self.into["future"].ran_check()
        before, after = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        if not len(before):
            return
        t, difference = self.rules.tolerance, after - before
        p95, mean = float(np.percentile(np.abs(difference), 95)), float(difference.mean())
        mean_limit = self._mean_limit(difference)
        self.into["future"].figure(
            "largest_change_before_a_cut_nats", float(np.abs(difference).max())
        )
        if np.abs(difference).max() > t.noise_max or p95 > t.noise_p95 or abs(mean) > mean_limit:
            place = int(np.abs(difference).argmax())
            self.into["future"].add(
                "INVALID",
                f"{what}: token {place + 1:,}" if len(pairs) == 1 else what,
                f"loss {before[place]:.6f}; at most {t.noise_max} apart, 95 % within {t.noise_p95}, mean within {mean_limit:.2g}",
                f"{after[place]:.6f}; 95 % within {p95:.3g}, mean difference {mean:+.3g} nats",
                RULE_FUTURE,
            )

    def _check_substitution(
        self, t: int, v: int, nll: float, log_row: np.ndarray, limit: float, what: str
    ) -> None:
        """The score of v must be what the row, asked for when another token stood there, gave to v."""
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

    def _check_rows(
        self, tokens: np.ndarray, positions: np.ndarray, scored: Scored, what: str
    ) -> None:
        """Rows sum to one and contain the scores of the same run."""
        into, t = self.into["normalisation"], self.rules.tolerance
        into.ran_check(len(positions))
        sums = np.exp(np.logaddexp.reduce(scored.probe, axis=1))
        into.figure("largest_sum", float(sums.max()))
        into.figure("smallest_sum", float(sums.min()), min)
        into.figure("rows_checked", len(positions), lambda a, b: a + b)
        if sums.max() > 1 + t.sum:
            place = int(sums.argmax())
            over = int(np.count_nonzero(sums > 1 + t.sum))
            into.add(
                "INVALID",
                f"{what}, position {positions[place]:,}",
                f"sum 1 ± {t.sum}",
                f"{sums[place]:.6g}; {over} of {len(sums)} rows above",
                RULE_SUM,
            )
        elif sums.min() < 1 - t.sum:
            place = int(sums.argmin())
            into.add(
                "WARN",
                f"{what}, position {positions[place]:,}",
                f"sum 1 ± {t.sum}",
                f"{sums[place]:.6g}: bits are wasted, none are gained",
                RULE_SUM,
            )
        if scored.nll is None:
            return
        inside = positions < len(tokens) - 1
        at = positions[inside]
        off = scored.nll[at] + scored.probe[inside][np.arange(len(at)), tokens[at + 1]]
        off = np.where(np.isnan(off), 0.0, off)
        if not len(off):
            return
        self.row_differences.append(off)
        into.figure("largest_difference_of_row_and_score_nats", float(np.abs(off).max()))
        if np.abs(off).max() > self.noise.limit:
            place = int(np.abs(off).argmax())
            count = int(np.count_nonzero(np.abs(off) > self.noise.limit))
            expected = scored.nll[at[place]] - off[place]
            into.add(
                "INVALID",
                f"{what}, position {at[place]:,}",
                f"loss {expected:.6f} ± {self.noise.limit:.2g} as its own row says",
                f"{scored.nll[at[place]]:.6f}; {count} of {len(at)} probed positions differ",
                RULE_ROW,
            )
