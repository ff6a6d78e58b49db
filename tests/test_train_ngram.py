"""The n-gram mixer against dictionaries: exact counts, distributions that sum to one, and nothing that its target or the future can move."""

import dataclasses
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train_gpt as tg

V = 7
CFG = dataclasses.replace(tg.Config(), **(TINY | {"vocab_size": V}), ngram_order=5)
SLOW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))

STREAMS = st.one_of(
    st.lists(st.integers(1, V - 1), min_size=2, max_size=60),  # random, BOS-dense: id 1 is the BOS
    st.integers(2, V - 1).flatmap(lambda a: st.integers(2, 60).map(lambda n: [a] * n)),  # constant
    st.lists(st.integers(2, V - 1), min_size=1, max_size=4).map(
        lambda p: (p * 60)[:50]
    ),  # periodic
    st.permutations(range(V)),  # all distinct
    st.lists(st.sampled_from([1, 1, 1, 3]), min_size=2, max_size=40),  # mostly document starts
).map(lambda xs: np.array(xs, dtype=np.uint16))


def model_scores(
    stream: np.ndarray, seed: int = 0, probes: range | None = None, prefix: int | None = None
) -> tuple[tg.StreamScores, np.ndarray]:
    """A made-up causal model: its ln p [N, V] at position i is drawn from a generator seeded by x[0..i]."""
    rows, entropy, confidence = [], [], []
    for i in range(len(stream)):
        rng = np.random.default_rng([seed, *stream[: i + 1].tolist()])
        p = rng.dirichlet(np.full(V, 0.5)) * 0.99 + 0.01 / V
        rows.append(np.log(p))
        entropy.append(-(p * np.log(p)).sum())
        confidence.append(rng.exponential(2.0))
    log_p = np.array(rows)
    nll = -log_p[np.arange(len(stream) - 1), stream[1:].astype(int)]
    vectors = {
        i: torch.from_numpy(log_p[i]) for i in (range(len(stream)) if probes is None else probes)
    }
    return tg.StreamScores(
        torch.from_numpy(nll), torch.tensor(entropy), torch.tensor(confidence), vectors
    ), log_p


def counts_by_dictionary(
    stream: np.ndarray, n_max: int
) -> dict[tuple[int, int], tuple[int, int, int]]:
    """(order, index of the last context token) -> (c, c_w, D), where the context occurred before and holds no BOS beyond its first token."""
    seen: dict[tuple[int, ...], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    result = {}
    for t in range(1, len(stream)):
        for n in range(2, n_max + 1):
            context = tuple(stream[t - n + 1 : t].tolist())
            if t - n + 1 < 0 or tg.BOS_ID in context[1:]:
                continue
            if seen[context]:
                result[n, t - 1] = (
                    sum(seen[context].values()),
                    seen[context].get(int(stream[t]), 0),
                    len(seen[context]),
                )
            seen[context][int(stream[t])] += 1
    return result


@SLOW
@given(STREAMS, st.sampled_from([1, 3, 1 << 18]))
def test_counts_equal_those_of_a_dictionary(stream, chunk):
    old, tg.COUNT_CHUNK = tg.COUNT_CHUNK, chunk
    try:
        blocks, found = [], {}
        tg.context_counts(
            torch.from_numpy(stream.astype(np.int64)), 6, V, lambda *block: blocks.append(block)
        )
        for n, *columns in blocks:
            for i, c, cw, d in zip(*(column.tolist() for column in columns), strict=True):
                if c and i < len(stream) - 1:
                    assert (n, i) not in found
                    found[n, i] = c, cw, d
        assert found == counts_by_dictionary(stream, 6)
    finally:
        tg.COUNT_CHUNK = old


def reference_mix(
    stream: np.ndarray, log_p: np.ndarray, scores: tg.StreamScores, n_max: int
) -> np.ndarray:
    """ln of the mixed distribution [N, V] by loops over positions and dictionaries, straight from the formulas of the section."""
    seen: dict[tuple[int, ...], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    grid = 1 / (1 + np.exp(-np.linspace(-4, 4, tg.GATE_GRID)))
    earned: dict[tuple, np.ndarray] = defaultdict(lambda: np.zeros(tg.GATE_GRID))
    leads: list[float] = []
    rows = []
    for i in range(len(stream)):
        chain, order, distinct = np.exp(log_p[i]), 0, 0
        for n in range(2, n_max + 1):
            context = tuple(stream[i - n + 2 : i + 1].tolist())
            if i - n + 2 < 0 or tg.BOS_ID in context[1:]:
                break
            if table := seen[context]:
                counts = np.array([table.get(w, 0) for w in range(V)])
                escape = tg.NGRAM_ESCAPE * len(table)
                chain, order, distinct = (
                    (counts + escape * chain) / (counts.sum() + escape),
                    n,
                    len(table),
                )
        recent = sum(leads[-tg.GATE_WINDOW :]) / tg.GATE_WINDOW
        features = (
            (recent, tg.RECENT_EDGES),
            (float(scores.entropy[i]), tg.ENTROPY_EDGES),
            (float(scores.confidence[i]), tg.CONFIDENCE_EDGES),
            (distinct, tg.CONTINUATION_EDGES),
        )
        bucket = (
            order,
            *(int(np.searchsorted(edges, value, side="left")) for value, edges in features),
        )
        weight = np.exp(earned[bucket] - earned[bucket].max())
        alpha = grid @ (weight / weight.sum())
        rows.append(np.log((1 - alpha) * np.exp(log_p[i]) + alpha * chain))
        if i + 1 < len(stream):
            target = int(stream[i + 1])
            gain = math.log(chain[target]) - log_p[i, target]
            earned[bucket] = earned[bucket] + np.log1p(grid * np.expm1(gain))
            leads.append(float(np.clip(np.log1p(np.exp(gain)) - math.log(2), -3, 6)))
            for n in range(2, n_max + 1):
                context = tuple(stream[i - n + 2 : i + 1].tolist())
                if i - n + 2 < 0 or tg.BOS_ID in context[1:]:
                    break
                seen[context][target] += 1
    return np.array(rows)


@SLOW
@given(STREAMS)
def test_the_mix_is_one_distribution_per_position_and_equals_the_reference(stream):
    scores, log_p = model_scores(stream)
    nll, vectors = tg.final_scores(scores, stream, CFG)
    mixed = torch.stack([vectors[i] for i in range(len(stream))]).numpy()
    np.testing.assert_allclose(np.exp(mixed).sum(-1), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        nll.numpy(), -mixed[np.arange(len(stream) - 1), stream[1:].astype(int)], rtol=0, atol=1e-11
    )
    np.testing.assert_allclose(
        mixed, reference_mix(stream, log_p, scores, CFG.ngram_order), rtol=0, atol=1e-7
    )


@SLOW
@given(STREAMS, st.data())
def test_the_target_and_what_follows_move_nothing(stream, data):
    t = data.draw(st.integers(1, len(stream) - 1))
    tail = data.draw(st.lists(st.integers(1, V - 1), min_size=0, max_size=20))
    other = (
        np.concatenate([stream[:t], np.array(tail, dtype=np.uint16)]) if tail else stream[:t].copy()
    )
    whole, cut = (
        tg.final_scores(model_scores(x, probes=range(t))[0], x, CFG) for x in (stream, other)
    )
    # log and exp of a vector's tail take another code path than its body, which is worth an ulp
    np.testing.assert_allclose(
        whole[0][: t - 1].numpy(), cut[0][: t - 1].numpy(), rtol=1e-13, atol=1e-13
    )
    np.testing.assert_allclose(
        whole[1][t - 1].numpy(), cut[1][t - 1].numpy(), rtol=1e-13, atol=1e-13
    )
    assert len(other) <= t or cut[0][t - 1].item() == pytest.approx(
        -cut[1][t - 1][int(other[t])].item(), abs=1e-11
    )


def markov_stream(n: int, vocab: int = 50) -> tuple[np.ndarray, tg.StreamScores]:
    """Copies of earlier stretches between random tokens: a stream on which counts of long contexts pay."""
    rng = np.random.default_rng(0)
    stream = [1]
    while len(stream) < n:
        start = rng.integers(len(stream))
        stream += (
            stream[start : start + int(rng.integers(1, 40))]
            if rng.random() < 0.5
            else [int(x) for x in rng.integers(1, vocab, 5)]
        )
    tokens = np.array(stream[:n], dtype=np.uint16)
    uniform = torch.full((n,), math.log(vocab), dtype=torch.float64)
    return tokens, tg.StreamScores(
        uniform[:-1],
        uniform + torch.from_numpy(rng.normal(size=n)),
        torch.from_numpy(rng.exponential(2, n)),
        {},
    )


def test_chunks_change_nothing_and_counts_pay(monkeypatch):
    stream, scores = markov_stream(20_000)
    cfg = dataclasses.replace(CFG, vocab_size=50, ngram_order=9)
    whole = tg.final_scores(scores, stream, cfg)[0]
    for count_chunk, gate_chunk in ((100, 7), (1 << 10, 1 << 12)):
        monkeypatch.setattr(tg, "COUNT_CHUNK", count_chunk)
        monkeypatch.setattr(tg, "GATE_CHUNK", gate_chunk)
        np.testing.assert_allclose(
            tg.final_scores(scores, stream, cfg)[0].numpy(), whole.numpy(), rtol=0, atol=1e-9
        )
    assert whole.sum() < 0.75 * scores.nll.sum()
    by_order = [
        tg.final_scores(scores, stream, dataclasses.replace(cfg, ngram_order=n))[0].sum().item()
        for n in (0, 2, 5)
    ]
    assert by_order[0] == scores.nll.sum().item() > by_order[1] > by_order[2]


def test_large_vocabularies_and_hopeless_models_stay_finite():
    rng = np.random.default_rng(1)
    stream = np.concatenate([rng.integers(1, 65_536, 300), [65_535] * 50]).astype(np.uint16)
    nll = torch.full((len(stream) - 1,), 900.0, dtype=torch.float64)  # e^-900 is not a float64
    zeros = torch.zeros(len(stream), dtype=torch.float64)
    mixed = tg.final_scores(
        tg.StreamScores(nll, zeros, zeros, {}), stream, dataclasses.replace(CFG, vocab_size=65_536)
    )[0]
    assert torch.isfinite(mixed).all() and (mixed >= 0).all() and mixed[-1] < 1


def test_the_gate_pays_at_most_its_price_where_counts_are_worthless():
    """Random tokens and a model that knows it: each bucket may lose ln|grid| nats at most, beside the grid's smallest alpha."""
    rng = np.random.default_rng(2)
    n, vocab = 30_000, 20
    stream = np.concatenate([[1], rng.integers(2, vocab, n - 1)]).astype(np.uint16)
    uniform = torch.full((n,), math.log(vocab - 2), dtype=torch.float64)
    scores = tg.StreamScores(uniform[:-1], uniform, torch.ones(n, dtype=torch.float64), {})
    mixed = tg.final_scores(scores, stream, dataclasses.replace(CFG, vocab_size=vocab))[0]
    assert (mixed - scores.nll).sum() < 0.005 * scores.nll.sum()
