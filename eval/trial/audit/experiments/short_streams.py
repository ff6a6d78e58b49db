"""Experiments on hundreds of short streams in two runs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from eval.text.corpus.bytes import BOS
from eval.text.language.generator import context_keys
from eval.trial.audit.experiments.comparisons import NEAR, Comparisons
from eval.trial.audit.experiments.rules import (
    RULE_FUTURE,
    RULE_SUM,
    RULE_TOKEN,
)
from eval.trial.runner.scorer import Scored, Stream

TINY = (2, 24)  # tokens of a tiny pair's prefix

LONG_SWEEP, LONG_SWEEP_TOKENS = (
    (48, 512),
    1 << 16,
)  # tokens of a long sweep's prefix, and of all its streams together


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


class ShortStreams(Comparisons):
    """Hundreds of short streams in two runs."""

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
