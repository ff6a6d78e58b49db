"""The hashed n-gram cache as the contest published it, kept as a yardstick. Its output is NOT a probability.

Two tables of `buckets` counters per order: one indexed by a hash of the context, one by a hash of (context, target). The
"probability" of the realised target is the ratio of the two counters, taken from the highest order whose context counter
reaches `min_count`, and blended with the neural probability. Only the realised target is ever looked up; summed over the
vocabulary the ratios do not make 1, because two keys of a context and of its continuations land in unrelated buckets: the
fuller the tables, the closer every ratio gets to 1, whatever the token. `vocabulary_sums` measures that.

An independent implementation of the scheme (orders 2-11, minimum count 2, weight and entropy centre per order, dual tables
of 4 M buckets, score-then-update in chunks of 16,384 tokens, confidence divided by the maximum of its chunk, which looks
ahead inside the chunk). Hashes are built incrementally from the newest token backwards, one multiplication per order and
token, so the timing comparison is against a loop that is at least as fast as hashing each context afresh.
"""

from dataclasses import dataclass

import numpy as np

PRIMES = np.array(
    [36313, 27191, 51647, 81929, 131071, 175447, 209591, 262147, 314159, 393241, 435889],
    dtype=np.uint64,
)


@dataclass(frozen=True, kw_only=True)
class HashedConfig:
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
        """Entropy in nats at which the gate of `order` is half open: long matches are trusted at lower entropy."""
        return 4.5 - 0.25 * (order - 2)

    def weight(self, order: int) -> float:
        """Multiplier of alpha for `order`: short contexts are damped, long ones trusted up to the cap."""
        return 0.3 if order <= 3 else 0.97 if order == 4 else 2.0


class HashedNgram:
    """Dual count tables of every order, `order -> (context counters, context-and-target counters)`, uint32."""

    def __init__(self, cfg: HashedConfig) -> None:
        self.cfg = cfg
        self.mask = np.uint64(cfg.buckets - 1)
        self.tables = {
            n: np.zeros((2, cfg.buckets), dtype=np.uint32) for n in range(cfg.n_min, cfg.n_max + 1)
        }

    def keys(
        self, tokens: np.ndarray, start: int, stop: int
    ) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """order -> (target positions in [start, stop) with a full context, context keys, unmasked context hashes)."""
        out = {}
        rolling = np.zeros(stop - start, dtype=np.uint64)
        for n in range(2, self.cfg.n_max + 1):
            back = n - 1
            first = max(start, back)
            if first >= stop:
                break
            rolling[first - start :] ^= tokens[first - back : stop - back] * PRIMES[back - 1]
            if n >= self.cfg.n_min:
                hashes = rolling[first - start :].copy()
                out[n] = (np.arange(first, stop), (hashes & self.mask).astype(np.int64), hashes)
        return out

    def pair_keys(self, hashes: np.ndarray, targets: np.ndarray, order: int) -> np.ndarray:
        """Bucket of (context, target): the target is hashed into the key, so no other target is ever looked at."""
        return ((hashes ^ (targets * PRIMES[order - 1])) & self.mask).astype(np.int64)

    def estimate(
        self, tokens: np.ndarray, start: int, stop: int, keys: dict
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ratio, matched order or 0) for the realised targets of [start, stop), from the highest matched order down."""
        ratio, matched = np.zeros(stop - start), np.zeros(stop - start, dtype=np.int64)
        for n in sorted(keys, reverse=True):
            positions, context_keys, hashes = keys[n]
            counts = self.tables[n][0][context_keys]
            use = (counts >= self.cfg.min_count) & (matched[positions - start] == 0)
            rows = positions[use]
            pair = self.tables[n][1][self.pair_keys(hashes[use], tokens[rows], n)]
            ratio[rows - start] = np.minimum(pair, counts[use]) / counts[use]
            matched[rows - start] = n
        return ratio, matched

    def update(self, tokens: np.ndarray, keys: dict) -> None:
        one = np.uint32(1)
        for n, (positions, context_keys, hashes) in keys.items():
            np.add.at(self.tables[n][0], context_keys, one)
            np.add.at(self.tables[n][1], self.pair_keys(hashes, tokens[positions], n), one)

    def alpha(self, matched: np.ndarray, entropy: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        cfg = self.cfg
        orders = np.arange(cfg.n_max + 1)
        centre = np.array([cfg.centre(n) for n in orders])[matched]
        weight = np.array([cfg.weight(n) for n in orders])[matched]
        gate = cfg.alpha_low + (cfg.alpha_high - cfg.alpha_low) / (
            1 + np.exp(-cfg.slope * (entropy - centre))
        )
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
    """Claimed nll (float64 [N-1], nats) of the published estimator and the tables after the whole stream.

    tokens integer [N]; neural_nll, entropy (nats), confidence (pe_delta) [N-1], entry i belonging to the target i + 1.
    """
    tokens = tokens.astype(np.uint64)
    model = HashedNgram(cfg)
    p_neural = np.exp(-neural_nll.astype(np.float64))
    out = np.empty(len(tokens) - 1)
    for start in range(1, len(tokens), cfg.chunk):
        stop = min(len(tokens), start + cfg.chunk)
        rows = slice(start - 1, stop - 1)
        keys = model.keys(tokens, start, stop)
        ratio, matched = model.estimate(tokens, start, stop, keys)
        alpha = model.alpha(matched, entropy[rows], confidence[rows])
        out[rows] = -np.log(np.maximum((1 - alpha) * p_neural[rows] + alpha * ratio, 1e-12))
        model.update(tokens, keys)
    return out, model


def vocabulary_sums(
    model: HashedNgram, tokens: np.ndarray, positions: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(sum over the vocabulary of the looked-up ratios, matched order) at each target position, for the tables as they are.

    A probability gives 1 everywhere. Every token of the vocabulary is put in the place of the target in turn.
    """
    tokens = tokens.astype(np.uint64)
    vocabulary = np.arange(vocab_size, dtype=np.uint64)
    sums, orders = np.zeros(len(positions)), np.zeros(len(positions), dtype=np.int64)
    for row, t in enumerate(positions):
        for n, (_, context_keys, hashes) in sorted(
            model.keys(tokens, int(t), int(t) + 1).items(), reverse=True
        ):
            count = model.tables[n][0][context_keys[0]]
            if count >= model.cfg.min_count:
                pair = model.tables[n][1][
                    model.pair_keys(np.repeat(hashes, vocab_size), vocabulary, n)
                ]
                sums[row], orders[row] = np.minimum(pair, count).sum() / count, n
                break
    return sums, orders
