"""Scores of one stream under the hashed estimator, and under exact counts with several gates."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import train_gpt as tg
from bench.hashed_ngram import HashedConfig, hashed_mix, vocabulary_sums

TABLE_BITS = (22, 20, 18, 16, 14, 12)
ORDERS = (0, 2, 3, 4, 6, 8, 11, 12, 16, 24)
# Digits of a gate's bucket behind the order of the match, with their number of values.
FEATURES = {
    "recent": len(tg.RECENT_EDGES) + 1,
    "entropy": len(tg.ENTROPY_EDGES) + 1,
    "confidence": len(tg.CONFIDENCE_EDGES) + 1,
    "continuation": len(tg.CONTINUATION_EDGES) + 1,
}
# A feature that the gate could also have: earlier visits of the longest match.
VISIT_EDGES = (1.5, 3.5, 8.5, 32.5)


@dataclass(frozen=True)
class Scored:
    """A stream, and what a model says of it."""

    stream: np.ndarray  # uint16 [N]
    num_bytes: int
    scores: tg.StreamScores
    cfg: tg.Config
    ranks: tg.Ranks

    def bits_per_byte(self, nll: Tensor | np.ndarray) -> float:
        return float(nll.sum()) / math.log(2) / self.num_bytes

    def tokens(self) -> Tensor:
        return torch.from_numpy(self.stream.astype(np.int64))

    def chain(self, p_N: Tensor) -> tg.Chain:
        vocab_size = self.cfg.model.vocab_size
        order = self.cfg.scoring.ngram_order
        return tg.ngram_chain(self.tokens(), p_N, order, vocab_size, self.ranks.map)

    def final_bits_per_byte(self, cfg: tg.Config) -> float:
        """As train_gpt.py reports it."""
        nll, _ = tg.final_scores(self.scores, self.stream, cfg, self.ranks.map)
        return self.bits_per_byte(nll)


def published_sigmoid(scored: Scored) -> Tensor:
    """nll [M] of the exact chain under the published gate.

    alpha = 0.05 + 0.55 sigmoid(2 (H - 4)) wherever any order matched.
    """
    nll = scored.scores.nll
    p_model = torch.cat([nll, nll.new_zeros(1)]).neg().exp()
    chain = scored.chain(p_model)
    gate = 0.05 + 0.55 * torch.sigmoid(2 * (scored.scores.entropy - 4))
    alpha = torch.where(chain.order_N > 0, gate, 0.0)
    return -torch.log((1 - alpha) * p_model + alpha * chain.p_N)[:-1]


class Buckets(NamedTuple):
    """Which gate each position uses."""

    bucket_N: Tensor  # int32 [N]
    count: int


def bayes_nll(scored: Scored, regroup: Callable[[Buckets], Buckets]) -> Tensor:
    """nll [M] of train_gpt.py's mixture, with other buckets than its own."""
    order = scored.cfg.scoring.ngram_order
    log_model_N = -torch.nn.functional.pad(scored.scores.nll, (0, 1))
    floored_N = log_model_N.clamp(min=-tg.NLL_CLAMP)
    chain = scored.chain(floored_N.exp())
    gain_N = torch.log(chain.p_N) - floored_N
    buckets = regroup(Buckets(*tg.gate_buckets(gain_N, chain, scored.scores, order)))
    alpha_N = tg.bayes_gate(gain_N, buckets.bucket_N, buckets.count)
    return -tg.log_mix(alpha_N, log_model_N, chain.p_N)[:-1]


def without_feature(name: str, buckets: Buckets) -> Buckets:
    """Buckets that do not tell this feature's values apart: its digit is taken out."""
    names = list(FEATURES)
    behind = math.prod(FEATURES[other] for other in names[names.index(name) + 1 :])
    higher_digits = buckets.bucket_N // (behind * FEATURES[name])
    lower_digits = buckets.bucket_N % behind
    return Buckets(higher_digits * behind + lower_digits, buckets.count // FEATURES[name])


def longest_match_visits(scored: Scored) -> Tensor:
    """How often the longest context that was visited before each target was, int32 [N]."""
    visits_N = torch.zeros(len(scored.stream), dtype=torch.int32)

    def keep(n: int, counts: tg.Counts) -> None:
        visited = counts.context > 0
        visits_N[counts.at[visited]] = counts.context[visited]

    vocab_size = scored.cfg.model.vocab_size
    order = scored.cfg.scoring.ngram_order
    tg.context_counts(scored.tokens(), order, vocab_size, keep, scored.ranks.map)
    return visits_N


def with_visits(visits_N: Tensor, buckets: Buckets) -> Buckets:
    """Finer buckets, by visits of the longest match too."""
    edges = torch.tensor(VISIT_EDGES, dtype=torch.float64)
    digit = torch.bucketize(visits_N.double(), edges, out_int32=True)
    values = len(VISIT_EDGES) + 1
    return Buckets(buckets.bucket_N * values + digit, buckets.count * values)


def measure_hashed(scored: Scored, bits: int, sampled: np.ndarray) -> dict:
    """The hashed estimator with 2^bits buckets; sums of its ratios at the sampled targets."""
    count = len(scored.scores.nll)
    nll = scored.scores.nll.numpy()
    entropy = scored.scores.entropy.numpy()[:count]
    confidence = scored.scores.confidence.numpy()[:count]
    started = time.perf_counter()
    claimed, tables = hashed_mix(
        scored.stream, nll, entropy, confidence, HashedConfig(buckets=1 << bits)
    )
    seconds = time.perf_counter() - started
    vocab_size = scored.cfg.model.vocab_size
    sums, orders = vocabulary_sums(tables, scored.stream, sampled, vocab_size)
    matched = sums[orders > 0]
    return {
        "buckets": 1 << bits,
        "claimed_bpb": scored.bits_per_byte(claimed),
        "seconds": seconds,
        "matched": len(matched) / len(sums),
        "sum_median": float(np.median(matched)),
        "sum_mean": float(np.mean(matched)),
        "sum_max": float(np.max(matched)),
    }


def sampled_targets(count: int) -> np.ndarray:
    """At most 200 positions in the second half of `count` targets, where the tables are full."""
    rng = np.random.default_rng(0)
    second_half = np.arange(count // 2, count)
    return np.sort(rng.choice(second_half, min(200, count // 4), replace=False))


def ablate_features(scored: Scored) -> dict[str, float]:
    results = {}
    for name in tqdm(FEATURES, desc="ablations"):
        nll = bayes_nll(scored, lambda buckets, name=name: without_feature(name, buckets))
        results[name] = scored.bits_per_byte(nll)
    return results


def ablate_orders(scored: Scored) -> dict[str, float]:
    results = {}
    for order in tqdm(ORDERS, desc="orders"):
        cfg = scored.cfg.with_settings(ngram_order=order)
        results[str(order)] = scored.final_bits_per_byte(cfg)
    return results


def measure_scores(scored: Scored) -> dict:
    """Bits per byte of every estimator on one stream."""
    sampled = sampled_targets(len(scored.scores.nll))
    hashed = [
        measure_hashed(scored, bits, sampled) for bits in tqdm(TABLE_BITS, desc="hashed tables")
    ]
    neural = scored.bits_per_byte(scored.scores.nll)
    exact_sigmoid = scored.bits_per_byte(published_sigmoid(scored))
    started = time.perf_counter()
    exact_bayes = scored.final_bits_per_byte(scored.cfg)
    exact_seconds = time.perf_counter() - started
    visits_N = longest_match_visits(scored)
    finer = bayes_nll(scored, lambda buckets: with_visits(visits_N, buckets))
    return {
        "tokens": len(scored.stream),
        "bytes": scored.num_bytes,
        "vocab_size": scored.cfg.model.vocab_size,
        "neural": neural,
        "hashed": hashed,
        "exact_sigmoid": exact_sigmoid,
        "exact_bayes": exact_bayes,
        "exact_seconds": exact_seconds,
        "default_order": scored.cfg.scoring.ngram_order,
        "without": ablate_features(scored),
        "with_visits": scored.bits_per_byte(finer),
        "by_order": ablate_orders(scored),
        "gain_over_neural": 1 - exact_bayes / neural,
        "gain_over_sigmoid": 1 - exact_bayes / exact_sigmoid,
    }
