"""The referee's own language model: interpolated Kneser-Ney n-grams of a token stream, sampled and evaluated exactly.

It is the generator g of the canary test and the plain baseline of the fresh-slice test. p(v | context) is

    p_1(v) = (1 - e) N(. v) / N(. .) + e / V,   p_n(v | c) = max(a(c v) - d_n, 0) / A(c) + d_n D(c) / A(c) · p_{n-1}(v | c')

where a is the count at the highest order and the continuation count (distinct left extensions) below it, A(c) and D(c) their sum and
number over v, c' is c without its oldest token, and d_n = n1 / (n1 + 2 n2) (Kneser and Ney 1995; Chen and Goodman 1999, section 3).
Where c was never seen, p_n = p_{n-1}. The rows sum to one exactly, so log2 g of a sampled token is its true log-probability.

A context never reaches across BOS. An n-gram is one int64, so the order is limited to 62 bits / bits per token: 6 for V = 1024, 4 for 8192."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BOS = 1
EPSILON = 1e-3  # share of the uniform distribution at the bottom: no token has probability 0
MAX_ORDER = 6


@dataclass(frozen=True)
class Level:
    """Order n: sorted n-gram keys with their discounted counts (cumulated), and sorted context keys with the spans of their n-grams."""

    grams: np.ndarray
    discounted: np.ndarray
    cumulated: np.ndarray
    contexts: np.ndarray
    first: np.ndarray
    total: np.ndarray
    back: np.ndarray


class KneserNey:
    """Fitted on a stream of ids [N], each document beginning with BOS. float64 throughout."""

    def __init__(self, stream: np.ndarray, vocab_size: int, max_order: int = MAX_ORDER):
        self.vocab_size = vocab_size
        self.bits = max(1, int(vocab_size - 1).bit_length())
        self.order = max(2, min(max_order, 62 // self.bits))
        stream = np.asarray(stream, np.int64)
        keys = [gram_keys(stream, n, self.bits) for n in range(1, self.order + 1)]
        unique = [np.unique(k, return_counts=True) for k in keys]
        self.levels: list[Level] = []  # orders 2, 3, ...
        for n in range(1, self.order + 1):
            grams, counts = unique[n - 1]
            if n < self.order and len(unique[n][0]):
                # Distinct left extensions; an n-gram that only ever opens a document keeps its plain count (it has nothing to its left).
                extended, left = np.unique(
                    unique[n][0] & ((1 << self.bits * n) - 1), return_counts=True
                )
                where = np.minimum(np.searchsorted(extended, grams), len(extended) - 1)
                counts = np.where(extended[where] == grams, left[where], counts)
            if n > 1:
                self.levels += (
                    [self._level(grams, counts)] if len(grams) else []
                )  # no text holds longer n-grams but no shorter ones
                continue
            bottom = np.full(vocab_size, EPSILON / vocab_size)
            bottom[grams] += (1 - EPSILON) * counts / max(counts.sum(), 1)
            bottom[BOS] = 0.0  # where documents end is for the referee to say, not for g
            self.bottom = bottom / bottom.sum()
        self.bottom_cumulated = np.cumsum(self.bottom)
        self.order = 1 + len(self.levels)

    def _level(self, grams: np.ndarray, counts: np.ndarray) -> Level:
        once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
        d = once / (once + 2 * twice) if once else 0.5
        d = min(max(d, 0.1), 0.9)
        context = grams >> self.bits
        first = np.flatnonzero(np.concatenate([[True], context[1:] != context[:-1]]))
        total = np.add.reduceat(counts, first).astype(np.float64)
        distinct = np.diff(np.append(first, len(grams)))
        discounted = counts - d
        cumulated = np.concatenate([[0.0], np.cumsum(discounted)])
        return Level(
            grams,
            discounted,
            cumulated,
            context[first],
            np.append(first, len(grams)),
            total,
            d * distinct / total,
        )

    def _context(self, level: Level, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index of each context, whether it was seen)."""
        at = np.minimum(np.searchsorted(level.contexts, keys), len(level.contexts) - 1)
        return at, level.contexts[at] == keys

    def _climb(
        self, contexts: list[np.ndarray], targets: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(p_n of each target, whether the order-n context was seen) for n = 1, 2, ... `contexts[n-2]` holds the int64 keys of the last
        n-1 tokens, -1 where they would reach across BOS."""
        p = self.bottom[targets]
        yield p, np.ones(len(targets), bool)
        for n in range(2, self.order + 1):
            level, keys = self.levels[n - 2], contexts[n - 2]
            at, seen = self._context(level, keys)
            grams = (keys << self.bits) | targets
            place = np.minimum(np.searchsorted(level.grams, grams), len(level.grams) - 1)
            count = np.where(seen & (level.grams[place] == grams), level.discounted[place], 0.0)
            p = np.where(seen, count / level.total[at] + level.back[at] * p, p)
            yield p, seen

    def probabilities(self, contexts: list[np.ndarray], targets: np.ndarray) -> np.ndarray:
        """p of each target at the highest order."""
        *_, (p, _) = self._climb(contexts, targets)
        return p

    def log2(self, stream: np.ndarray) -> np.ndarray:
        """float64 [N-1]: log2 g(x[i+1] | x[0..i]); NaN where x[i+1] is BOS, which g does not model."""
        stream = np.asarray(stream, np.int64)
        out = np.full(max(len(stream) - 1, 0), np.nan)
        contexts = context_keys(stream[:-1], self.order - 1, self.bits)
        inside = np.flatnonzero(stream[1:] != BOS)
        step = 1 << 18
        for start in range(0, len(inside), step):
            here = inside[start : start + step]
            out[here] = np.log2(self.probabilities([c[here] for c in contexts], stream[1:][here]))
        return out

    def features(self, stream: np.ndarray) -> np.ndarray:
        """float64 [N-1, 2 * order]: bits of each target under every order, whether each context above order 1 was seen, and a 1. Where the
        target is BOS the row means nothing."""
        stream = np.asarray(stream, np.int64)
        targets = np.where(stream[1:] == BOS, 0, stream[1:])
        rows = list(self._climb(context_keys(stream[:-1], self.order - 1, self.bits), targets))
        return np.stack(
            [
                *(-np.log2(p) for p, _ in rows),
                *(seen.astype(float) for _, seen in rows[1:]),
                np.ones(len(targets)),
            ],
            1,
        )

    def sample(
        self, rng: np.random.Generator, prefixes: list[np.ndarray], lengths: np.ndarray
    ) -> list[np.ndarray]:
        """Continue each prefix by `lengths[k]` tokens drawn from p; all continuations grow side by side.

        Ancestral sampling of the mixture: from the highest order down, a context keeps its discounted counts with probability 1 - back
        and hands over to the next lower order otherwise, which is exactly the interpolation above."""
        span = max(self.order - 1, 1)
        history = np.full((len(prefixes), span), -1, np.int64)
        for row, prefix in enumerate(prefixes):
            prefix = np.asarray(prefix, np.int64)
            starts = np.flatnonzero(prefix == BOS)
            usable = prefix[starts[-1] :] if len(starts) else prefix
            usable = usable[-span:]
            if len(usable):
                history[row, span - len(usable) :] = usable
        longest = int(max(lengths, default=0))
        out = np.zeros((len(prefixes), longest), np.int64)
        order = np.argsort(-np.asarray(lengths), kind="stable")
        sorted_lengths = np.asarray(lengths)[order]
        history = history[order]
        for t in range(longest):
            alive = int(np.searchsorted(-sorted_lengths, -t, side="left"))
            token = self._draw(rng, history[:alive])
            out[:alive, t] = token
            history[:alive, :-1] = history[:alive, 1:]
            history[:alive, -1] = token
        result = [np.zeros(0, np.int64)] * len(prefixes)
        for row, original in enumerate(order):
            result[original] = out[row, : sorted_lengths[row]]
        return result

    def _draw(self, rng: np.random.Generator, history: np.ndarray) -> np.ndarray:
        count, span = history.shape
        token = np.full(count, -1, np.int64)
        open_rows = np.arange(count)
        for n in range(self.order, 1, -1):
            if not len(open_rows):
                break
            level = self.levels[n - 2]
            recent = history[open_rows][:, span - (n - 1) :]
            keys = np.zeros(len(open_rows), np.int64)
            for column in range(n - 1):
                keys = (keys << self.bits) | recent[:, column]
            keys = np.where((recent < 0).any(1), -1, keys)
            at, seen = self._context(level, keys)
            stay = seen & (rng.random(len(open_rows)) >= level.back[at])
            rows, at = open_rows[stay], at[stay]
            low, high = level.cumulated[level.first[at]], level.cumulated[level.first[at + 1]]
            pick = (
                np.searchsorted(
                    level.cumulated, low + rng.random(len(rows)) * (high - low), side="right"
                )
                - 1
            )
            pick = np.clip(pick, level.first[at], level.first[at + 1] - 1)
            token[rows] = level.grams[pick] & ((1 << self.bits) - 1)
            open_rows = open_rows[~stay]
        drawn = np.searchsorted(
            self.bottom_cumulated,
            rng.random(len(open_rows)) * self.bottom_cumulated[-1],
            side="right",
        )
        token[open_rows] = np.minimum(drawn, self.vocab_size - 1)
        return token


def context_keys(context: np.ndarray, longest: int, bits: int) -> list[np.ndarray]:
    """For each position the keys of its last 1..longest tokens, int64; -1 where they would reach across a BOS or the start."""
    context = np.asarray(context, np.int64)

    def back(n: int) -> np.ndarray:
        """The token n before each position, -1 before the start."""
        return np.concatenate(
            [np.full(min(n, len(context)), -1, np.int64), context[: max(len(context) - n, 0)]]
        )

    out, keys, valid = [], np.zeros(len(context), np.int64), np.ones(len(context), bool)
    for n in range(longest):
        # The oldest token may be BOS itself, but nothing newer may be.
        valid = valid & (back(n) >= 0) & ((back(n - 1) != BOS) if n else True)
        keys = keys | (np.maximum(back(n), 0) << (bits * n))
        out.append(np.where(valid, keys, -1))
    return out


def gram_keys(stream: np.ndarray, n: int, bits: int) -> np.ndarray:
    """int64 keys of every n-gram of the stream that ends in a token other than BOS and lies inside one document."""
    if n == 1:
        return stream[stream != BOS]
    keys = context_keys(stream[:-1], n - 1, bits)[n - 2]
    inside = (keys >= 0) & (stream[1:] != BOS)
    return (keys[inside] << bits) | stream[1:][inside]
