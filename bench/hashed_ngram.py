"""The hashed n-gram cache as the contest published it, kept as a yardstick.

Its output is NOT a probability.

Every order has two tables of `buckets` counters: one indexed by a hash of the context, one by a
hash of (context, target). The "probability" of the realised target is the ratio of the two
counters. It comes from the highest order whose context counter reaches `min_count`, and is
blended with the neural probability. Only the realised target is ever looked up. Summed over the
vocabulary the ratios do not make 1, because the keys of a context and of its continuations land
in unrelated buckets: the fuller the tables, the closer every ratio gets to 1, whatever the token.
`vocabulary_sums` measures that.

This is an independent implementation of the scheme: orders 2-11, minimum count 2, weight and
entropy centre per order, dual tables of 4 M buckets, score-then-update in chunks of 16,384
tokens, and confidence divided by the maximum of its chunk, which looks ahead inside the chunk.
Hashes are built incrementally from the newest token backwards, with one multiplication per order
and token. So the timing comparison is against a loop that is at least as fast as hashing each
context from scratch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PRIMES = np.array(
    [36313, 27191, 51647, 81929, 131071, 175447, 209591, 262147, 314159, 393241, 435889],
    dtype=np.uint64,
)


@dataclass(frozen=True, kw_only=True)
class HashedConfig:
    """Raises ValueError on impossible orders and on buckets that are not a power of two."""

    n_min: int = 2
    n_max: int = 11
    min_count: int = 2
    buckets: int = 1 << 22
    chunk: int = 16_384
    alpha_low: float = 0.05
    alpha_high: float = 0.60
    alpha_cap: float = 0.95
    slope: float = 2.0
    confidence_weight: float = 0.25

    def __post_init__(self) -> None:
        if not 2 <= self.n_min <= self.n_max <= len(PRIMES):
            raise ValueError(
                f"orders {self.n_min}..{self.n_max}: expected 2 <= n_min <= n_max <= {len(PRIMES)}"
            )
        if self.buckets < 1 or self.buckets & (self.buckets - 1):
            raise ValueError(f"buckets={self.buckets}: expected a power of two")

    def centre(self, order: int) -> float:
        """Entropy in nats at which the gate of `order` is half open.

        Long matches are trusted at lower entropy.
        """
        return 4.5 - 0.25 * (order - 2)

    def weight(self, order: int) -> float:
        """Multiplier of alpha for `order`.

        Short contexts are damped, long ones trusted up to the cap.
        """
        if order <= 3:
            return 0.3
        return 0.97 if order == 4 else 2.0


class ContextKeys(NamedTuple):
    """The contexts of one order before a range of targets, M of which have a full context.

    positions: int64 [M], the targets' positions.
    buckets: int64 [M], where the context is counted.
    hashes: uint64 [M], the context's hash before it is cut to a bucket.
    """

    positions: np.ndarray
    buckets: np.ndarray
    hashes: np.ndarray


class HashedNgram:
    """Count tables, `order -> uint32 [2, buckets]`: of contexts, and of (context, target)."""

    def __init__(self, cfg: HashedConfig) -> None:
        self.cfg = cfg
        self.mask = np.uint64(cfg.buckets - 1)
        orders = range(cfg.n_min, cfg.n_max + 1)
        self.tables = {n: np.zeros((2, cfg.buckets), dtype=np.uint32) for n in orders}

    def keys(self, tokens: np.ndarray, start: int, stop: int) -> dict[int, ContextKeys]:
        """The contexts of the targets in [start, stop), by order. tokens: uint64 [N]."""
        found = {}
        rolling = np.zeros(stop - start, dtype=np.uint64)
        for n in range(2, self.cfg.n_max + 1):
            back = n - 1
            first = max(start, back)
            if first >= stop:
                break
            rolling[first - start :] ^= tokens[first - back : stop - back] * PRIMES[back - 1]
            if n >= self.cfg.n_min:
                hashes = rolling[first - start :].copy()
                buckets = (hashes & self.mask).astype(np.int64)
                found[n] = ContextKeys(np.arange(first, stop), buckets, hashes)
        return found

    def pair_keys(self, hashes: np.ndarray, targets: np.ndarray, order: int) -> np.ndarray:
        """Bucket of (context, target), int64.

        The target is hashed into the key, so no other target is ever looked at.
        """
        return ((hashes ^ (targets * PRIMES[order - 1])) & self.mask).astype(np.int64)

    def estimate(
        self, tokens: np.ndarray, start: int, stop: int, keys: dict[int, ContextKeys]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ratio, matched order or 0) for the realised targets of [start, stop).

        The highest matched order gives the ratio.
        """
        ratio = np.zeros(stop - start)
        matched = np.zeros(stop - start, dtype=np.int64)
        for n in sorted(keys, reverse=True):
            contexts, pairs = self.tables[n]
            positions, buckets, hashes = keys[n]
            counts = contexts[buckets]
            use = (counts >= self.cfg.min_count) & (matched[positions - start] == 0)
            targets = positions[use]
            rows = targets - start
            pair_counts = pairs[self.pair_keys(hashes[use], tokens[targets], n)]
            ratio[rows] = np.minimum(pair_counts, counts[use]) / counts[use]
            matched[rows] = n
        return ratio, matched

    def update(self, tokens: np.ndarray, keys: dict[int, ContextKeys]) -> None:
        """Counts the targets that `keys` stand before."""
        one = np.uint32(1)
        for n, (positions, buckets, hashes) in keys.items():
            contexts, pairs = self.tables[n]
            np.add.at(contexts, buckets, one)
            np.add.at(pairs, self.pair_keys(hashes, tokens[positions], n), one)

    def alpha(self, matched: np.ndarray, entropy: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """The share of the ratio in the mixture, float64; 0 where no order matched."""
        cfg = self.cfg
        orders = range(cfg.n_max + 1)
        centre = np.array([cfg.centre(n) for n in orders])[matched]
        weight = np.array([cfg.weight(n) for n in orders])[matched]
        rise = cfg.alpha_high - cfg.alpha_low
        gate = cfg.alpha_low + rise / (1 + np.exp(-cfg.slope * (entropy - centre)))
        relative = confidence / max(float(confidence.max()), 1e-12)
        damped = gate * weight * (1 - cfg.confidence_weight * relative)
        return np.where(matched > 0, np.minimum(damped, cfg.alpha_cap), 0.0)


def hashed_mix(
    tokens: np.ndarray,
    neural_nll: np.ndarray,
    entropy: np.ndarray,
    confidence: np.ndarray,
    cfg: HashedConfig,
) -> tuple[np.ndarray, HashedNgram]:
    """Claimed nll of the published estimator, and its tables after the whole stream.

    tokens: integer [N].
    neural_nll, entropy (nats), confidence (pe_delta): [N-1], entry i belongs to target i + 1.
    Returns nll: float64 [N-1], nats.
    """
    stream = tokens.astype(np.uint64)
    model = HashedNgram(cfg)
    p_neural = np.exp(-neural_nll.astype(np.float64))
    nll = np.empty(len(stream) - 1)
    for start in range(1, len(stream), cfg.chunk):
        stop = min(len(stream), start + cfg.chunk)
        rows = slice(start - 1, stop - 1)
        keys = model.keys(stream, start, stop)
        ratio, matched = model.estimate(stream, start, stop, keys)
        alpha = model.alpha(matched, entropy[rows], confidence[rows])
        mixed = (1 - alpha) * p_neural[rows] + alpha * ratio
        nll[rows] = -np.log(np.maximum(mixed, 1e-12))
        model.update(stream, keys)
    return nll, model


def vocabulary_sums(
    model: HashedNgram, tokens: np.ndarray, positions: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(sum over the vocabulary of the looked-up ratios, matched order) at each target position.

    The tables stay as they are. Every token of the vocabulary is put in the place of the target
    in turn. A probability gives 1 everywhere.
    """
    stream = tokens.astype(np.uint64)
    sums = np.zeros(len(positions))
    orders = np.zeros(len(positions), dtype=np.int64)
    for row, position in enumerate(positions):
        keys = model.keys(stream, int(position), int(position) + 1)
        for n in sorted(keys, reverse=True):
            total = vocabulary_sum(model, keys[n], n, vocab_size)
            if total is not None:
                sums[row] = total
                orders[row] = n
                break
    return sums, orders


def vocabulary_sum(
    model: HashedNgram, keys: ContextKeys, order: int, vocab_size: int
) -> float | None:
    """The sum of all tokens' ratios after one context; None where the context is too rare."""
    contexts, pairs = model.tables[order]
    count = contexts[keys.buckets[0]]
    if count < model.cfg.min_count:
        return None
    vocabulary = np.arange(vocab_size, dtype=np.uint64)
    hashes = np.repeat(keys.hashes, vocab_size)
    pair_counts = pairs[model.pair_keys(hashes, vocabulary, order)]
    return np.minimum(pair_counts, count).sum() / count
