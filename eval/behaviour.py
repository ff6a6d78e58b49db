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
that hides in the jitter of many tokens shows there."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from eval.bytes import BOS
from eval.generator import KneserNey, context_keys
from eval.report import Collector
from eval.rules import Profile, Rules
from eval.runner import RunFailed, Scored, Scorer, Stream
from eval.sandbox import WALL_CLOCK

LN2 = float(np.log(2))
LAMBDAS = np.array([1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001])
TINY = (2, 24)  # tokens of a tiny pair's prefix
LONG_SWEEP, LONG_SWEEP_TOKENS = (
    (48, 512),
    1 << 16,
)  # tokens of a long sweep's prefix, and of all its streams together
NEAR = 16  # scores before a changed token, where what looks ahead a little would move
FEWEST = 16  # differences of which a mean is taken
CONTROL_AT = 0.7  # share of the real stream that control documents should stand behind, as near as a splice lies
RULE_FUTURE = "a score may depend only on the artifact and the tokens before it"
RULE_FRESH = "each stream is scored from a fresh state, and twice gives the same"
RULE_SUM = "the next-token probabilities sum to one"
RULE_ROW = "the score is -ln of the probability that the distribution gives to the token"
RULE_TOKEN = "a token may not influence its own probability"
RULE_PROBES = "asking for a distribution must not change a score"
RULE_CANARY = (
    "a probability measure gains k bits on text of known probability with probability at most 2^-k"
)


@dataclass
class Noise:
    """Measured differences between scores that ought to be equal, nats; `limit` is the tolerance that follows."""

    rules: Rules
    samples: list[np.ndarray] = field(default_factory=list)

    def add(self, difference: np.ndarray) -> None:
        if len(difference):
            self.samples.append(np.abs(difference))

    @property
    def largest(self) -> float:
        return max((float(s.max()) for s in self.samples), default=0.0)

    @property
    def p95(self) -> float:
        return float(np.percentile(np.concatenate(self.samples), 95)) if self.samples else 0.0

    @property
    def p99(self) -> float:
        """Of each comparison of reruns, then the largest: one long quiet run does not hide what short streams show."""
        return max((float(np.percentile(s, 99)) for s in self.samples), default=0.0)

    @property
    def rms(self) -> float:
        return max((float(np.sqrt(np.square(s).mean())) for s in self.samples), default=0.0)

    @property
    def limit(self) -> float:
        t = self.rules.tolerance
        return max(t.exact, min(t.noise_factor * self.p99, t.noise_limit))


@dataclass
class Pair:
    """`first` and `second` are equal in their first `shared` tokens and differ in the next; `cut`: the second ends with that token."""

    first: np.ndarray
    shared: int
    cut: bool
    second: np.ndarray | None = None
    at_first: int = -1  # index of the stream in part one
    at_second: int = -1


@dataclass
class DocumentPair:
    """Two streams of equal length that differ only before the BOS at `border`."""

    first: np.ndarray
    second: np.ndarray
    border: int


@dataclass
class Sweep:
    prefix: np.ndarray
    tokens: np.ndarray
    indices: list[int] = field(default_factory=list)


class Behaviour:
    """All behaviour tests of one artifact on one validation stream `x` (int64 [N]). Results go to `into`, one Collector for each test."""

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

    # --- Runs ---

    def run_official(self) -> np.ndarray | None:
        """nll [N-1] of the record's own run, None where it broke the contract."""
        (scored,) = self._score([Stream(self.x)], "official")
        self.official = scored.nll
        return scored.nll

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

    # --- Long runs ---

    def _splice_points(self) -> list[int]:
        """Positions t at which the long runs leave the real stream. One lies in the second half; with several, they spread over the whole."""
        n = len(self.x)
        if self.profile.late_splices == 1:
            return [int(self.rng.integers(int(0.55 * n), int(0.8 * n)))]
        edges = np.linspace(0.02, 0.98, self.profile.late_splices + 1)
        return [
            int(self.rng.integers(int(a * n), max(int(b * n), int(a * n) + 1)))
            for a, b in itertools.pairwise(edges)
        ]

    def _probed(self, step: Callable[[str], None], splices: list[int]) -> dict[int, np.ndarray]:
        """Run with probes on the real stream with other last tokens; returns the row at each probed position before those."""
        step("probed")
        n, k = len(self.x), min(self.profile.probes, len(self.x))
        t = self.tail_point
        end = n - 1 - self.rng.integers(0, min(64, n), size=max(k // 16, 1))
        near_bos = np.flatnonzero(self.x == BOS)
        near_bos = (
            self.rng.choice(near_bos, min(len(near_bos), max(k // 16, 1)), replace=False)[:, None]
            + np.array([-1, 0, 1])
        ).ravel()
        anywhere = self.rng.choice(n, max(k - len(end) - len(near_bos), 1), replace=False)
        positions = np.concatenate([anywhere, end, near_bos, splices, [n - 1, t]]).astype(np.int64)
        positions = np.unique(positions[(positions >= 0) & (positions < n)])
        stream = np.concatenate([self.x[: t + 1], self._other_tail(self.x[t + 1 :])])
        (scored,) = self._score([Stream(stream, positions)], "probed, last tokens replaced")
        if scored.nll is not None:
            difference = scored.nll[:t] - self.official[:t]
            self.into["future"].ran_check()
            self.into["future"].figure(
                "largest_change_before_a_changed_token_nats",
                float(np.abs(difference).max(initial=0.0)),
            )
            if np.abs(difference).max(initial=0.0) <= self.rules.tolerance.exact:
                self.noise.add(difference)
            else:
                self._explain(step, scored.nll, positions)
        if scored.probe is None:
            return {}
        self._check_rows(stream, positions, scored, "real stream")
        return {p: row for p, row in zip(positions.tolist(), scored.probe, strict=True) if p <= t}

    def _explain(self, step: Callable[[str], None], nll: np.ndarray, positions: np.ndarray) -> None:
        """The probed run with its other tail differs from the official one. Two more runs say why: noise, the probes, or the tail."""
        t = self.tail_point
        step("official again")
        (again,) = self._score([Stream(self.x)], "official again")
        if again.nll is None:
            return
        rerun = again.nll - self.official
        self.noise.add(rerun)
        if self._too_noisy(rerun):
            self._report_noise(rerun, "the same run twice")
            return
        step("probed, nothing replaced")
        (exact,) = self._score([Stream(self.x, positions)], "probed, nothing replaced")
        if exact.nll is None:
            return
        signed = exact.nll - self.official
        self._check_mean("normalisation", signed, "scores with and without probes", RULE_PROBES)
        self._check_mean(
            "normalisation",
            signed[positions[positions < len(signed)]],
            "scores of probed positions with and without probes",
            RULE_PROBES,
        )
        difference = np.abs(signed)
        if difference.max() > self.noise.limit:
            place = int(difference.argmax())
            self.into["normalisation"].add(
                "INVALID",
                f"position {place + 1:,}" + (" (probed)" if place in positions else ""),
                f"the same loss with and without probes, {self.official[place]:.6f} ± {self.noise.limit:.2g}",
                f"{exact.nll[place]:.6f}; {np.count_nonzero(difference > self.noise.limit):,} positions differ",
                RULE_PROBES,
            )
        self._compare_prefix(
            exact.nll[:t], nll[:t], f"real stream, its last {len(self.x) - t - 1} tokens replaced"
        )

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

    def _splice(self, t: int, probed: dict[int, np.ndarray], control: np.ndarray | None) -> None:
        """Real up to t, then v, control documents for at most half of the rest, and sampled text, as long as the real stream."""
        v = self._other_token(probed.get(t), int(self.x[t + 1]))
        control = (
            np.zeros(0, np.int64) if control is None else control[: (len(self.x) - t - 2) // 2]
        )
        head = np.concatenate([self.x[: t + 1], [v], control])
        stream = self._sampled(head, len(self.x))
        (scored,) = self._score([Stream(stream)], f"splice at {t:,}")
        if scored.nll is None:
            return
        self._compare_prefix(
            self.official[:t],
            scored.nll[:t],
            f"real stream, everything from token {t + 1:,} on replaced",
        )
        if t in probed:
            self._check_substitution(
                t,
                v,
                float(scored.nll[t]),
                probed[t],
                self.noise.limit,
                f"real stream, token {t + 1:,} replaced",
            )
        if len(control) > 1:
            self.control_scored = control, scored.nll[t + 2 : t + 1 + len(control)]
        sampled = t + 1 + len(control)  # position before the first sampled token
        log2_g = self.generator.log2(stream)[sampled:]
        self._note_canary(-scored.nll[sampled:] / LN2, log2_g)

    def _tail(self, probed: dict[int, np.ndarray]) -> None:
        t = self.tail_point
        v = self._other_token(probed.get(t), int(self.x[t + 1]))
        (scored,) = self._score([Stream(np.append(self.x[: t + 1], v))], f"tail cut at {t:,}")
        if scored.nll is None:
            return
        self._compare_cut(
            [(self.official[:t], scored.nll[:t])],
            f"real stream cut after token {t + 1:,} of {len(self.x):,}",
        )
        if t in probed:
            limit = max(self.noise.limit, self.rules.tolerance.noise_max)
            self._check_substitution(
                t,
                v,
                float(scored.nll[t]),
                probed[t],
                limit,
                f"real stream cut after token {t + 1:,}",
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

    # --- Comparisons ---

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

    # --- Many short streams ---

    def _many(self, step: Callable[[str], None]) -> None:
        pairs, dense, sweeps, borders = (
            self._pairs(),
            self._dense(),
            self._sweeps(),
            self._borders(),
        )
        streams = []
        for pair in pairs:
            pair.at_first = len(streams)
            streams.append(Stream(pair.first, np.array([pair.shared - 1])))
        dense_at = len(streams)
        streams += [Stream(tokens, np.arange(len(tokens))) for tokens in dense]
        for sweep in sweeps:
            sweep.indices = list(range(len(streams), len(streams) + len(sweep.tokens)))
            probe = np.array([len(sweep.prefix) - 1])
            streams += [
                Stream(np.append(sweep.prefix, v), probe if k == 0 else None)
                for k, v in enumerate(sweep.tokens.tolist())
            ]
        borders_at = len(streams)
        streams += [Stream(side) for border in borders for side in (border.first, border.second)]
        twice_at = len(streams)
        twice = self.rng.choice(len(pairs), min(8, len(pairs)), replace=False).tolist()
        streams += [Stream(pairs[k].first) for k in twice]
        extra_at = len(streams)
        streams += self.extra_streams
        step("many, part one")
        scored = self._score(streams, "many, part one")
        self.extra_scored = scored[extra_at:]
        repeats = [
            (scored[pairs[k].at_first].nll, scored[twice_at + j].nll) for j, k in enumerate(twice)
        ]

        # Part two: each pair's second stream takes a token drawn from the first one's row.
        second, rows = [], {}
        for pair in pairs:
            first = scored[pair.at_first]
            row = first.probe[0] if first.probe is not None else None
            v = self._other_token(row, int(pair.first[pair.shared]))
            tail = (
                np.zeros(0, np.int64)
                if pair.cut
                else self._other_tail(pair.first[pair.shared + 1 :])
            )
            pair.second = np.concatenate([pair.first[: pair.shared], [v], tail])
            pair.at_second = len(second)
            rows[pair.at_second] = row
            second.append(Stream(pair.second))
        again_at = len(second)
        second += [Stream(pairs[k].first) for k in twice]
        step("many, part two")
        scored_second = self._score(second, "many, part two")
        repeats += [
            (scored[pairs[k].at_first].nll, scored_second[again_at + j].nll)
            for j, k in enumerate(twice)
        ]
        self._check_repeats(repeats)
        self._check_pairs(pairs, scored, scored_second, rows)
        for k, tokens in enumerate(dense):
            if scored[dense_at + k].probe is not None:
                self._check_rows(
                    tokens, np.arange(len(tokens)), scored[dense_at + k], f"short stream {k + 1}"
                )
        for sweep in sweeps:
            self._check_sweep(sweep, scored)
        self._check_borders(borders, scored[borders_at:twice_at])

    def _excerpt(self, size: int, at_document: bool = False) -> np.ndarray:
        """Text that begins with a BOS, as every stream does: the real opening, a document's beginning, or the middle of one behind a BOS."""
        size, n = min(size, len(self.x) - 1), len(self.x)
        starts = np.flatnonzero(self.x[: n - size] == BOS)
        kind = self.rng.random()
        if kind < 0.25:
            return self.x[:size]
        if len(starts) and (at_document or kind < 0.6):
            begin = int(self.rng.choice(starts))
            return self.x[begin : begin + size]
        begin = int(self.rng.integers(0, n - size + 1))
        return np.concatenate([[BOS], self.x[begin : begin + size - 1]])

    def _pairs(self) -> list[Pair]:
        """Prefix lengths are log-uniform; a third of the long ones end next to a BOS or to a multiple of a power of two."""
        pairs = []
        for k in range(self.profile.pairs + self.profile.tiny_pairs):
            tiny = k >= self.profile.pairs
            low, high = TINY if tiny else (2, min(self.profile.pair_tokens, len(self.x) // 2))
            size = int(np.exp(self.rng.uniform(np.log(low), np.log(high + 1))))
            kind = self.rng.random()
            text = self._excerpt(high + 4 + high // 4, at_document=0.15 < kind < 0.3)
            if not tiny and kind < 0.15:
                power = 2 ** int(self.rng.integers(4, max(5, int(np.log2(high)) + 1)))
                size = size // power * power + int(self.rng.integers(-1, 2))
            elif not tiny and kind < 0.3 and (text[low:high] == BOS).any():
                size = (
                    low
                    + int(self.rng.choice(np.flatnonzero(text[low:high] == BOS)))
                    + int(self.rng.integers(-1, 3))
                )
            size = min(max(size, low), high)
            rest = (
                int(self.rng.integers(1, 4))
                if tiny
                else int(self.rng.integers(1, 1 + max(4, size // 4)))
            )
            pairs.append(
                Pair(text[: size + 1 + rest], size, cut=not tiny and self.rng.random() < 0.25)
            )
        return pairs

    def _other_tail(self, tail: np.ndarray) -> np.ndarray:
        """Real text from elsewhere, of the same length, that differs in its first token."""
        for _ in range(20):
            start = int(self.rng.integers(0, len(self.x) - len(tail)))
            other = self.x[start : start + len(tail)].copy()
            if len(other) and other[0] != tail[0]:
                return other
        return (tail + 1) % self.scorer.vocab_size

    def _dense(self) -> list[np.ndarray]:
        out, left = [], self.profile.dense_tokens
        while left > 0:
            out.append(self._excerpt(min(left, int(self.rng.integers(96, 385)))))
            left -= len(out[-1])
        return out

    def _sweeps(self) -> list[Sweep]:
        out, v = [], self.scorer.vocab_size
        for _ in range(self.profile.sweeps):
            tokens = (
                np.arange(v)
                if v <= self.profile.sweep_limit
                else np.sort(self.rng.choice(v, self.profile.sweep_limit, replace=False))
            )
            out.append(Sweep(self._excerpt(int(self.rng.integers(4, 33))), tokens))
            prefix = self._excerpt(int(np.exp(self.rng.uniform(*np.log(LONG_SWEEP)))))
            count = min(v, LONG_SWEEP_TOKENS // len(prefix), self.profile.sweep_limit)
            out.append(Sweep(prefix, self._likeliest(prefix, count)))
        return out

    def _likeliest(self, prefix: np.ndarray, count: int) -> np.ndarray:
        """BOS and the tokens that the n-gram model expects after `prefix`: few of them hold most of the mass, so that their sum can pass one."""
        v = self.scorer.vocab_size
        contexts = [
            np.repeat(keys[-1:], v)
            for keys in context_keys(prefix, self.generator.order - 1, self.generator.bits)
        ]
        p = self.generator.probabilities(contexts, np.arange(v))
        p[BOS] = np.inf
        return np.sort(np.argsort(-p, kind="stable")[:count])

    def _borders(self) -> list[DocumentPair]:
        """Neighbouring documents A|B, and the same with another text of A's length before the same B."""
        starts = np.flatnonzero(self.x == BOS)
        out = []
        if len(starts) < 4:
            return out
        for k in self.rng.choice(len(starts) - 2, min(8, len(starts) - 2), replace=False).tolist():
            a, b, end = int(starts[k]), int(starts[k + 1]), int(starts[k + 2])
            a, end = max(a, b - 256), min(end, b + 256)
            if b - a < 2:
                continue
            first, second = self.x[a:end], self.x[a:end].copy()
            other = int(self.rng.integers(0, len(self.x) - (b - a)))
            second[1 : b - a] = np.where(
                self.x[other + 1 : other + b - a] == BOS, 2, self.x[other + 1 : other + b - a]
            )
            out.append(DocumentPair(first, second, b - a))
        return out

    def _check_repeats(self, repeats: list[tuple[np.ndarray | None, np.ndarray | None]]) -> None:
        """Streams that came twice, in one run and in two, among different others."""
        known = [(a, b) for a, b in repeats if a is not None and b is not None]
        if not known:
            return
        self.into["future"].ran_check(len(known))
        difference = np.concatenate([b - a for a, b in known])
        if self._too_noisy(difference):
            self._report_noise(difference, "the same short stream twice, in other company")
        elif len(difference):
            self.noise.add(difference)

    def _check_pairs(
        self,
        pairs: list[Pair],
        first: list[Scored],
        second: list[Scored],
        rows: dict[int, np.ndarray | None],
    ) -> None:
        cuts, moved, signed, tested = [], [], [], 0
        for pair in pairs:
            a, b, m = first[pair.at_first], second[pair.at_second], pair.shared
            if a.probe is not None:
                self._check_rows(
                    pair.first, np.array([m - 1]), a, f"short stream of {len(pair.first)} tokens"
                )
            if a.nll is None or b.nll is None:
                continue
            tested += 1
            if pair.cut:
                cuts.append((a.nll[: m - 1], b.nll[: m - 1]))
            elif m > 1:
                signed.append(b.nll[: m - 1] - a.nll[: m - 1])
                difference = np.abs(signed[-1])
                moved.append((float(difference.max()), pair, int(difference.argmax()), a, b))
            row = rows[pair.at_second]
            if row is not None:
                limit = (
                    max(self.noise.limit, self.rules.tolerance.noise_max)
                    if pair.cut
                    else self.noise.limit
                )
                self._check_substitution(
                    m - 1,
                    int(pair.second[m]),
                    float(b.nll[m - 1]),
                    row,
                    limit,
                    f"short stream, token {m + 1:,} replaced",
                )
        future = self.into["future"]
        future.ran_check(tested)
        future.figure("pairs_compared", tested, lambda a, b: a + b)
        if cuts:
            self._compare_cut(cuts, f"{len(cuts)} short streams cut")
        if moved:
            self._check_mean(
                "future",
                np.concatenate(signed),
                f"{len(moved)} short streams, their last tokens replaced",
                RULE_FUTURE,
            )
            self.near_differences += [difference[-NEAR:] for difference in signed]
            future.figure("largest_change_before_a_changed_token_nats", max(m[0] for m in moved))
        bad = [m for m in moved if m[0] > self.noise.limit]
        for largest, pair, place, a, b in sorted(bad, key=lambda m: -m[0])[:3]:
            future.add(
                "INVALID",
                f"short stream of {len(pair.first)} tokens, changed from token {pair.shared + 1} on: token {place + 2}",
                f"loss {a.nll[place]:.6f} ± {self.noise.limit:.2g}",
                f"{b.nll[place]:.6f} ({largest:.3g} apart); {len(bad)} of {len(moved)} pairs moved",
                RULE_FUTURE,
            )

    def _check_sweep(self, sweep: Sweep, scored: list[Scored]) -> None:
        results = [scored[k] for k in sweep.indices]
        if any(r.nll is None for r in results):
            return
        into, t, m = self.into["normalisation"], self.rules.tolerance, len(sweep.prefix)
        into.ran_check()
        last = np.array([r.nll[m - 1] for r in results])
        total = float(np.exp(-last).sum())
        whole = len(sweep.tokens) == self.scorer.vocab_size
        into.figure("largest_swept_sum", total)
        what = f"prefix of {m} tokens, {'every token' if whole else f'{len(sweep.tokens)} tokens'} of the vocabulary in turn"
        if total > 1 + t.sum:
            into.add("INVALID", what, f"sum 1 ± {t.sum}", f"{total:.6g}", RULE_SUM)
        elif whole and total < 1 - t.sum:
            into.add(
                "WARN",
                what,
                f"sum 1 ± {t.sum}",
                f"{total:.6g}: bits are wasted, none are gained",
                RULE_SUM,
            )
        if results[0].probe is not None:
            signed = last + results[0].probe[0][sweep.tokens]
            signed = np.where(np.isfinite(signed), signed, 0.0)
            self.token_differences.append(
                signed.mean(keepdims=True)
            )  # one context rounds in one way: one difference, not one for each token
            off = np.abs(signed)
            into.figure("largest_substitution_error_nats", float(off.max()))
            if off.max() > self.noise.limit:
                v = int(off.argmax())
                into.add(
                    "INVALID",
                    f"{what}: id {sweep.tokens[v]}",
                    f"loss {-results[0].probe[0][sweep.tokens[v]]:.6f} ± {self.noise.limit:.2g}",
                    f"{last[v]:.6f}; {np.count_nonzero(off > self.noise.limit)} tokens differ",
                    RULE_TOKEN,
                )
        if m > 1:
            shared = np.array([r.nll[: m - 1] for r in results])
            spread = float((shared.max(0) - shared.min(0)).max())
            self.into["future"].ran_check()
            self.into["future"].figure("largest_change_before_a_changed_token_nats", spread)
            if spread > self.noise.limit:
                self.into["future"].add(
                    "INVALID",
                    f"{what}: an earlier token",
                    f"equal losses ± {self.noise.limit:.2g}",
                    f"{spread:.3g} apart",
                    RULE_FUTURE,
                )

    def _check_borders(self, borders: list[DocumentPair], scored: list[Scored]) -> None:
        into, largest, place = self.into["documents"], 0.0, 0
        for k, border in enumerate(borders):
            first, second = scored[2 * k].nll, scored[2 * k + 1].nll
            if first is None or second is None or len(first) <= border.border:
                continue
            into.ran_check()
            difference = np.abs(first - second)[border.border :]
            if difference.max() > largest:
                largest, place = float(difference.max()), int(difference.argmax()) + 1
        if not into.ran:
            into.skip("fewer than four documents in the stream")
            return
        into.figure("largest_effect_across_a_document_border_nats", largest)
        if largest > self.noise.limit and self.rules.policy.document_isolation:
            into.add(
                "POLICY", f"token {place} of a document", f"no effect of the document before it (± {self.noise.limit:.2g})", f"{largest:.3g} nats",
                "rule set asks for document isolation",
            )  # fmt: skip

    # --- Canary and summary ---

    def _note_canary(self, log2_q: np.ndarray, log2_g: np.ndarray) -> None:
        known = np.isfinite(log2_g)  # not the BOS tokens, which the referee placed itself
        self.log_ratios.append(log2_q[known] - log2_g[known])

    def _canary(self) -> None:
        """Test martingale: the product of 1 - l + l q/g has expectation at most 1 for every l in (0, 1] if q is a distribution that g's
        randomness did not enter before it was drawn; so has its mean over l. l = 1 is the plain likelihood ratio; small l see a sum that is a
        little above one although q and g differ much."""
        into, t = self.into["canary"], self.rules.tolerance
        if not self.log_ratios:
            into.skip("no sampled text was scored")
            return
        ratios = np.concatenate(self.log_ratios)
        into.ran_check()
        w = np.exp2(np.minimum(ratios, 200.0))
        growth = np.array(
            [np.log2(1 - lam + lam * w).sum() if lam < 1 else ratios.sum() for lam in LAMBDAS]
        )
        top = growth.max()
        bits = float(top + np.log2(np.exp2(growth - top).mean()))
        capped = np.minimum(w, 1e6)
        variance = float(((capped - 1) ** 2).mean())
        into.figure("evidence_bits", bits)
        into.figure("log_likelihood_ratio_bits", float(ratios.sum()))
        into.figure("sampled_tokens", len(ratios))
        into.figure("mean_of_q_over_g", float(capped.mean()))
        into.figure(
            "smallest_visible_excess_of_the_sum",
            float(
                np.sqrt(2 * LN2 * (t.canary_bits + np.log2(len(LAMBDAS))) * variance / len(ratios))
            ),
        )
        into.tolerance = f"{t.canary_bits:g} bits"
        into.tolerance_source = f"Markov's inequality: a valid scorer gets there with probability 2^-{t.canary_bits:g}; no noise enters"
        if bits > t.canary_bits:
            into.add(
                "INVALID",
                f"{len(ratios):,} sampled tokens",
                f"at most {t.canary_bits:g} bits",
                f"{bits:,.1f} bits (mean of q/g {capped.mean():.4g})",
                RULE_CANARY,
            )

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
