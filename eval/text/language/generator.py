"""The referee's own language model: interpolated Kneser-Ney n-grams of a token stream, sampled and
evaluated exactly.

It is the generator g of the canary test and the plain baseline of the fresh-slice test.
p(v | context) is

    p_1(v)     = (1 - e) N(. v) / N(. .) + e / V
    p_n(v | c) = max(a(c v) - d_n, 0) / A(c) + d_n D(c) / A(c) · p_{n-1}(v | c')

where a is the count at the highest order and the continuation count (distinct left extensions)
below it, A(c) and D(c) are their sum and number over v, c' is c without its oldest token, and
d_n = n1 / (n1 + 2 n2) (Kneser and Ney 1995; Chen and Goodman 1999, section 3). Where c was never
seen, p_n = p_{n-1}. The rows sum to one exactly, so log2 g of a sampled token is its true
log-probability.

A context never reaches across BOS. An n-gram is one int64, so the order is limited to
62 bits / bits per token: 6 for V = 1024, 4 for 8192.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BOS = 1
EPSILON = 1e-3  # share of the uniform distribution at the bottom: no token has probability 0
MAX_ORDER = 6
KEY_BITS = 62  # of an n-gram's int64
SCORED_AT_ONCE = 1 << 18  # tokens; bounds the memory of `log2`
UNREACHABLE = -1  # key of a context that would reach across BOS or before the start
SMALLEST_DISCOUNT, LARGEST_DISCOUNT = 0.1, 0.9
DISCOUNT_WITHOUT_SINGLETONS = 0.5


class Counts(NamedTuple):
    """Sorted distinct n-gram keys, int64, and how often each occurs."""

    grams: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Level:
    """Order n of the model. G n-grams, sorted by key, lie in the spans of C contexts.

    `grams` int64 [G]: keys; `discounted` float64 [G]: counts less the discount;
    `cumulated` float64 [G+1]: their running sum, from 0.
    `contexts` int64 [C]: keys; `first` [C+1]: where the n-grams of each context begin.
    `total` float64 [C]: A(c); `back` float64 [C]: weight of the next lower order."""

    grams: np.ndarray
    discounted: np.ndarray
    cumulated: np.ndarray
    contexts: np.ndarray
    first: np.ndarray
    total: np.ndarray
    back: np.ndarray

    @classmethod
    def of(cls, grams: np.ndarray, counts: np.ndarray, bits: int) -> "Level":
        discount = absolute_discount(counts)
        context = grams >> bits
        first = np.flatnonzero(np.concatenate([[True], context[1:] != context[:-1]]))
        total = np.add.reduceat(counts, first).astype(np.float64)
        ends = np.append(first, len(grams))
        discounted = counts - discount
        return cls(
            grams=grams,
            discounted=discounted,
            cumulated=np.concatenate([[0.0], np.cumsum(discounted)]),
            contexts=context[first],
            first=ends,
            total=total,
            back=discount * np.diff(ends) / total,
        )

    def locate(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index of each context, whether it was seen)."""
        return find(self.contexts, keys)

    def discounted_count(self, grams: np.ndarray) -> np.ndarray:
        """Of each n-gram; 0 for one that was not seen."""
        place, seen = find(self.grams, grams)
        return np.where(seen, self.discounted[place], 0.0)

    def draw(self, rng: np.random.Generator, contexts: np.ndarray) -> np.ndarray:
        """Key of an n-gram of each context (given by index), drawn by its discounted count."""
        first = self.first[contexts]
        end = self.first[contexts + 1]
        low = self.cumulated[first]
        high = self.cumulated[end]
        point = low + rng.random(len(contexts)) * (high - low)
        pick = np.searchsorted(self.cumulated, point, side="right") - 1
        return self.grams[np.clip(pick, first, end - 1)]


def find(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(an index into `ordered`, whether the value is there) for each wanted value."""
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return at, ordered[at] == wanted


def absolute_discount(counts: np.ndarray) -> float:
    """d = n1 / (n1 + 2 n2), kept away from 0 and 1."""
    once = np.count_nonzero(counts == 1)
    twice = np.count_nonzero(counts == 2)
    discount = once / (once + 2 * twice) if once else DISCOUNT_WITHOUT_SINGLETONS
    return min(max(discount, SMALLEST_DISCOUNT), LARGEST_DISCOUNT)


class KneserNey:
    """Fitted on a stream of ids [N], each document beginning with BOS. float64 throughout.

    `bottom` float64 [V]: p_1. `levels`: orders 2, 3, ..., `order`."""

    def __init__(self, stream: np.ndarray, vocab_size: int, max_order: int = MAX_ORDER):
        self.vocab_size = vocab_size
        self.bits = max(1, int(vocab_size - 1).bit_length())
        highest = max(2, min(max_order, KEY_BITS // self.bits))
        stream = np.asarray(stream, np.int64)
        plain = [self._count(stream, n) for n in range(1, highest + 1)]
        self.bottom = self._bottom(self._continuations(plain, 1))
        self.bottom_cumulated = np.cumsum(self.bottom)
        self.levels: list[Level] = []
        for n in range(2, highest + 1):
            grams, counts = self._continuations(plain, n)
            if len(grams):  # no text holds longer n-grams but no shorter ones
                self.levels.append(Level.of(grams, counts, self.bits))
        self.order = 1 + len(self.levels)

    def _count(self, stream: np.ndarray, n: int) -> Counts:
        return Counts(*np.unique(gram_keys(stream, n, self.bits), return_counts=True))

    def _continuations(self, plain: list[Counts], n: int) -> Counts:
        """Number of distinct left extensions of each n-gram; at the highest order, plain counts.

        An n-gram that only ever opens a document has nothing to its left and keeps its count."""
        grams, counts = plain[n - 1]
        if n == len(plain) or not len(plain[n].grams):
            return plain[n - 1]
        without_oldest = plain[n].grams & ((1 << self.bits * n) - 1)
        extended, left = np.unique(without_oldest, return_counts=True)
        where, is_extended = find(extended, grams)
        return Counts(grams, np.where(is_extended, left[where], counts))

    def _bottom(self, unigrams: Counts) -> np.ndarray:
        grams, counts = unigrams
        bottom = np.full(self.vocab_size, EPSILON / self.vocab_size)
        bottom[grams] += (1 - EPSILON) * counts / max(counts.sum(), 1)
        bottom[BOS] = 0.0  # where documents end is for the referee to say, not for g
        return bottom / bottom.sum()

    # --- Evaluating ---

    def _climb(
        self, contexts: list[np.ndarray], targets: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(p_n of each target, whether the order-n context was seen) for n = 1, 2, ...

        `contexts[n-2]` holds the int64 keys of the last n-1 tokens, see `context_keys`."""
        p = self.bottom[targets]
        yield p, np.ones(len(targets), bool)
        for level, keys in zip(self.levels, contexts, strict=True):
            at, seen = level.locate(keys)
            grams = (keys << self.bits) | targets
            count = np.where(seen, level.discounted_count(grams), 0.0)
            p = np.where(seen, count / level.total[at] + level.back[at] * p, p)
            yield p, seen

    def probabilities(self, contexts: list[np.ndarray], targets: np.ndarray) -> np.ndarray:
        """p of each target at the highest order; `contexts` as `context_keys` makes them."""
        *_, (p, _) = self._climb(contexts, targets)
        return p

    def log2(self, stream: np.ndarray) -> np.ndarray:
        """float64 [N-1]: log2 g(x[i+1] | x[0..i]) of a stream of ids [N].

        NaN where x[i+1] is BOS, which g does not model."""
        stream = np.asarray(stream, np.int64)
        targets = stream[1:]
        out = np.full(len(targets), np.nan)
        contexts = context_keys(stream[:-1], self.order - 1, self.bits)
        inside = np.flatnonzero(targets != BOS)
        for start in range(0, len(inside), SCORED_AT_ONCE):
            here = inside[start : start + SCORED_AT_ONCE]
            contexts_here = [keys[here] for keys in contexts]
            out[here] = np.log2(self.probabilities(contexts_here, targets[here]))
        return out

    def features(self, stream: np.ndarray) -> np.ndarray:
        """float64 [N-1, 2 * order] of a stream of ids [N].

        Columns: bits of each target under every order, whether each context above order 1 was
        seen, and a 1. Where the target is BOS the row means nothing."""
        stream = np.asarray(stream, np.int64)
        targets = np.where(stream[1:] == BOS, 0, stream[1:])
        rows = list(self._climb(context_keys(stream[:-1], self.order - 1, self.bits), targets))
        bits = [-np.log2(p) for p, _ in rows]
        seen = [was_seen.astype(float) for _, was_seen in rows[1:]]
        return np.stack([*bits, *seen, np.ones(len(targets))], axis=1)

    # --- Sampling ---

    def sample(
        self, rng: np.random.Generator, prefixes: list[np.ndarray], lengths: np.ndarray
    ) -> list[np.ndarray]:
        """Continue each prefix by `lengths[k]` tokens drawn from p.

        All continuations grow side by side, the longest first, so that those still growing are
        always the first rows."""
        lengths = np.asarray(lengths)
        order = np.argsort(-lengths, kind="stable")
        falling = lengths[order]
        history = self._histories(prefixes)[order]
        drawn = np.zeros((len(prefixes), int(max(lengths, default=0))), np.int64)
        for t in range(drawn.shape[1]):
            growing = int(np.searchsorted(-falling, -t, side="left"))
            token = self._draw(rng, history[:growing])
            drawn[:growing, t] = token
            history[:growing, :-1] = history[:growing, 1:]
            history[:growing, -1] = token
        result = [np.zeros(0, np.int64)] * len(prefixes)
        for row, original in enumerate(order):
            result[original] = drawn[row, : falling[row]]
        return result

    def _histories(self, prefixes: list[np.ndarray]) -> np.ndarray:
        """int64 [prefixes, longest context]: the last tokens of each prefix, from its last BOS
        on; `UNREACHABLE` before them."""
        span = max(self.order - 1, 1)
        history = np.full((len(prefixes), span), UNREACHABLE, np.int64)
        for row, prefix in enumerate(prefixes):
            tokens = np.asarray(prefix, np.int64)
            starts = np.flatnonzero(tokens == BOS)
            begin = int(starts[-1]) if len(starts) else 0
            usable = tokens[max(begin, len(tokens) - span) :]
            history[row, span - len(usable) :] = usable
        return history

    def _draw(self, rng: np.random.Generator, history: np.ndarray) -> np.ndarray:
        """One token behind each row of `history` int64 [rows, longest context].

        Ancestral sampling of the mixture: from the highest order down, a context keeps its
        discounted counts with probability 1 - back and hands over to the next lower order
        otherwise, which is exactly the interpolation at the top of this file."""
        token = np.full(len(history), UNREACHABLE, np.int64)
        open_rows = np.arange(len(history))
        for n in range(self.order, 1, -1):
            if not len(open_rows):
                break
            level = self.levels[n - 2]
            at, seen = level.locate(self._keys_of_last(history[open_rows], n - 1))
            stays = seen & (rng.random(len(open_rows)) >= level.back[at])
            token[open_rows[stays]] = level.draw(rng, at[stays]) & ((1 << self.bits) - 1)
            open_rows = open_rows[~stays]
        point = rng.random(len(open_rows)) * self.bottom_cumulated[-1]
        lowest = np.searchsorted(self.bottom_cumulated, point, side="right")
        token[open_rows] = np.minimum(lowest, self.vocab_size - 1)
        return token

    def _keys_of_last(self, history: np.ndarray, n: int) -> np.ndarray:
        """int64 key of the last n tokens of each row; `UNREACHABLE` where there are fewer."""
        recent = history[:, history.shape[1] - n :]
        keys = np.zeros(len(recent), np.int64)
        for column in range(n):
            keys = (keys << self.bits) | recent[:, column]
        return np.where((recent < 0).any(axis=1), UNREACHABLE, keys)


# --- Keys ---


def context_keys(context: np.ndarray, longest: int, bits: int) -> list[np.ndarray]:
    """For each position the int64 keys of its last 1..longest tokens.

    `UNREACHABLE` where they would reach across a BOS or before the start."""
    context = np.asarray(context, np.int64)
    out = []
    keys = np.zeros(len(context), np.int64)
    valid = np.ones(len(context), bool)
    for n in range(longest):
        oldest = shifted(context, n)
        valid = valid & (oldest >= 0)
        if n:  # the oldest token may be BOS itself, but nothing newer may be
            valid = valid & (shifted(context, n - 1) != BOS)
        keys = keys | (np.maximum(oldest, 0) << (bits * n))
        out.append(np.where(valid, keys, UNREACHABLE))
    return out


def shifted(context: np.ndarray, n: int) -> np.ndarray:
    """int64 [N]: the token n before each position, -1 before the start."""
    start = np.full(min(n, len(context)), -1, np.int64)
    return np.concatenate([start, context[: max(len(context) - n, 0)]])


def gram_keys(stream: np.ndarray, n: int, bits: int) -> np.ndarray:
    """int64 key of every n-gram of the stream that lies inside one document and does not end in
    BOS."""
    if n == 1:
        return stream[stream != BOS]
    keys = context_keys(stream[:-1], n - 1, bits)[n - 2]
    targets = stream[1:]
    inside = (keys >= 0) & (targets != BOS)
    return (keys[inside] << bits) | targets[inside]
