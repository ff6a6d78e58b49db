"""The n-gram mixer against dictionaries.

Counts are exact, distributions sum to one, and neither its target nor the future moves a score.
"""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from train_support import tiny

import train_gpt as tg

V = 7
CFG = tiny(vocab_size=V, ngram_order=5)
SLOW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def constant_streams(draw: st.DrawFn) -> list[int]:
    return [draw(st.integers(2, V - 1))] * draw(st.integers(2, 60))


@st.composite
def periodic_streams(draw: st.DrawFn) -> list[int]:
    period = draw(st.lists(st.integers(2, V - 1), min_size=1, max_size=4))
    return (period * 50)[:50]


STREAMS = st.one_of(
    st.lists(st.integers(1, V - 1), min_size=2, max_size=60),  # random, BOS-dense: id 1 is the BOS
    constant_streams(),
    periodic_streams(),
    st.permutations(range(V)),  # all distinct
    st.lists(st.sampled_from([1, 1, 1, 3]), min_size=2, max_size=40),  # mostly document starts
).map(lambda tokens: np.array(tokens, dtype=np.uint16))


def model_scores(
    stream: np.ndarray, seed: int = 0, probes: range | None = None
) -> tuple[tg.StreamScores, np.ndarray]:
    """A made-up causal model and its ln p [N, V], drawn at i from a generator seeded by x[0..i]."""
    rows, entropy, confidence = [], [], []
    for i in range(len(stream)):
        rng = np.random.default_rng([seed, *stream[: i + 1].tolist()])
        p = rng.dirichlet(np.full(V, 0.5)) * 0.99 + 0.01 / V
        rows.append(np.log(p))
        entropy.append(-(p * np.log(p)).sum())
        confidence.append(rng.exponential(2.0))
    log_p = np.array(rows)
    nll = -log_p[np.arange(len(stream) - 1), stream[1:].astype(int)]
    probed = range(len(stream)) if probes is None else probes
    scores = tg.StreamScores(
        torch.from_numpy(nll),
        torch.tensor(entropy),
        torch.tensor(confidence),
        {i: torch.from_numpy(log_p[i]) for i in probed},
    )
    return scores, log_p


def contexts_before(stream: np.ndarray, t: int, n_max: int) -> list[tuple[int, tuple[int, ...]]]:
    """(n, the n - 1 tokens before position t): what orders 2 ... n_max condition on.

    A context holds no BOS beyond its first token.
    """
    contexts = []
    for n in range(2, n_max + 1):
        context = tuple(stream[max(0, t - n + 1) : t].tolist())
        if len(context) < n - 1 or tg.BOS_ID in context[1:]:
            break
        contexts.append((n, context))
    return contexts


Continuations = dict[int, int]  # token -> how often it followed


def counts_by_dictionary(stream: np.ndarray, n_max: int) -> dict[tuple[int, int], tuple]:
    """(n, index of the last context token) -> (c, c_w, D), where the context occurred before."""
    seen: dict[tuple[int, ...], Continuations] = defaultdict(lambda: defaultdict(int))
    result = {}
    for t in range(1, len(stream)):
        target = int(stream[t])
        for n, context in contexts_before(stream, t, n_max):
            table = seen[context]
            if table:
                result[n, t - 1] = (sum(table.values()), table.get(target, 0), len(table))
            table[target] += 1
    return result


@SLOW
@given(STREAMS, st.sampled_from([1, 3, 1 << 18]))
def test_counts_equal_those_of_a_dictionary(stream, chunk):
    found = {}

    def collect(n: int, counts: tg.Counts) -> None:
        for at, *row in zip(*(column.tolist() for column in counts), strict=True):
            visited = row[0] > 0
            if visited and at < len(stream) - 1:
                assert (n, at) not in found
                found[n, at] = tuple(row)

    tokens = torch.from_numpy(stream.astype(np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tg, "COUNT_CHUNK", chunk)
        tg.context_counts(tokens, 6, V, collect)
    assert found == counts_by_dictionary(stream, 6)


class ReferenceMix:
    """The mixture by loops over positions and dictionaries, straight from the formulas."""

    def __init__(self, stream: np.ndarray, scores: tg.StreamScores, n_max: int):
        self.stream = stream
        self.scores = scores
        self.n_max = n_max
        self.seen: dict[tuple[int, ...], Continuations] = defaultdict(lambda: defaultdict(int))
        self.grid = 1 / (1 + np.exp(-np.linspace(-4, 4, tg.GATE_GRID)))
        self.earned: dict[tuple, np.ndarray] = defaultdict(lambda: np.zeros(tg.GATE_GRID))
        self.leads: list[float] = []

    def chain(self, i: int, p_V: np.ndarray) -> tuple[np.ndarray, int, int]:
        """The back-off distribution [V] after position i, its order and continuations."""
        order, distinct = 0, 0
        for n, context in contexts_before(self.stream, i + 1, self.n_max):
            table = self.seen[context]
            if table:
                counts = np.array([table.get(w, 0) for w in range(V)])
                escape = tg.NGRAM_ESCAPE * len(table)
                p_V = (counts + escape * p_V) / (counts.sum() + escape)
                order, distinct = n, len(table)
        return p_V, order, distinct

    def bucket(self, i: int, order: int, distinct: int) -> tuple[int, ...]:
        recent = sum(self.leads[-tg.GATE_WINDOW :]) / tg.GATE_WINDOW
        features = (
            (recent, tg.RECENT_EDGES),
            (float(self.scores.entropy[i]), tg.ENTROPY_EDGES),
            (float(self.scores.confidence[i]), tg.CONFIDENCE_EDGES),
            (distinct, tg.CONTINUATION_EDGES),
        )
        cells = [int(np.searchsorted(edges, value, side="left")) for value, edges in features]
        return (order, *cells)

    def learn(self, i: int, bucket: tuple[int, ...], gain: float) -> None:
        """What the target after position i, which gained `gain` nats, teaches."""
        self.earned[bucket] = self.earned[bucket] + np.log1p(self.grid * np.expm1(gain))
        lead = np.log1p(np.exp(gain)) - math.log(2)
        self.leads.append(float(np.clip(lead, -3, 6)))
        for _, context in contexts_before(self.stream, i + 1, self.n_max):
            self.seen[context][int(self.stream[i + 1])] += 1

    def run(self, log_p: np.ndarray) -> np.ndarray:
        """ln of the mixed distribution [N, V], for the model's ln p [N, V]."""
        rows = []
        for i in range(len(self.stream)):
            chain_V, order, distinct = self.chain(i, np.exp(log_p[i]))
            bucket = self.bucket(i, order, distinct)
            weight = np.exp(self.earned[bucket] - self.earned[bucket].max())
            alpha = self.grid @ (weight / weight.sum())
            rows.append(np.log((1 - alpha) * np.exp(log_p[i]) + alpha * chain_V))
            if i + 1 < len(self.stream):
                target = int(self.stream[i + 1])
                self.learn(i, bucket, math.log(chain_V[target]) - log_p[i, target])
        return np.array(rows)


@SLOW
@given(STREAMS)
def test_the_mix_is_one_distribution_per_position_and_equals_the_reference(stream):
    scores, log_p = model_scores(stream)
    nll, vectors = tg.final_scores(scores, stream, CFG)
    mixed = torch.stack([vectors[i] for i in range(len(stream))]).numpy()
    np.testing.assert_allclose(np.exp(mixed).sum(-1), 1, rtol=0, atol=1e-12)
    of_targets = mixed[np.arange(len(stream) - 1), stream[1:].astype(int)]
    np.testing.assert_allclose(nll.numpy(), -of_targets, rtol=0, atol=1e-11)
    expected = ReferenceMix(stream, scores, CFG.scoring.ngram_order).run(log_p)
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-7)


@SLOW
@given(STREAMS, st.data())
def test_the_target_and_what_follows_move_nothing(stream, data):
    t = data.draw(st.integers(1, len(stream) - 1))
    following = data.draw(st.lists(st.integers(1, V - 1), min_size=0, max_size=20))
    other = np.concatenate([stream[:t], np.array(following, dtype=np.uint16)])

    def score(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, _ = model_scores(tokens, probes=range(t))
        nll, probes = tg.final_scores(scores, tokens, CFG)
        return nll.numpy(), probes[t - 1].numpy()

    nll, row = score(stream)
    other_nll, other_row = score(other)
    # log and exp of a vector's tail take another code path than its body, which is worth an ulp
    np.testing.assert_allclose(nll[: t - 1], other_nll[: t - 1], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(row, other_row, rtol=1e-13, atol=1e-13)
    if following:
        assert other_nll[t - 1] == pytest.approx(-other_row[following[0]], abs=1e-11)


def markov_stream(n: int, vocab: int = 50) -> tuple[np.ndarray, tg.StreamScores]:
    """Copies of earlier stretches between random tokens: counts of long contexts pay."""
    rng = np.random.default_rng(0)
    stream = [1]
    while len(stream) < n:
        start = rng.integers(len(stream))
        if rng.random() < 0.5:
            stream += stream[start : start + int(rng.integers(1, 40))]
        else:
            stream += rng.integers(1, vocab, 5).tolist()
    tokens = np.array(stream[:n], dtype=np.uint16)
    uniform = torch.full((n,), math.log(vocab), dtype=torch.float64)
    entropy = uniform + torch.from_numpy(rng.normal(size=n))
    confidence = torch.from_numpy(rng.exponential(2, n))
    return tokens, tg.StreamScores(uniform[:-1], entropy, confidence, {})


def test_chunks_change_nothing_and_counts_pay(monkeypatch):
    stream, scores = markov_stream(20_000)

    def nll(order: int = 9) -> torch.Tensor:
        return tg.final_scores(scores, stream, tiny(vocab_size=50, ngram_order=order))[0]

    whole = nll()
    assert whole.sum() < 0.75 * scores.nll.sum()
    assert nll(0).sum() == scores.nll.sum()
    assert nll(0).sum() > nll(2).sum() > nll(5).sum()
    for count_chunk, gate_chunk in ((100, 7), (1 << 10, 1 << 12)):
        monkeypatch.setattr(tg, "COUNT_CHUNK", count_chunk)
        monkeypatch.setattr(tg, "GATE_CHUNK", gate_chunk)
        np.testing.assert_allclose(nll().numpy(), whole.numpy(), rtol=0, atol=1e-9)


def test_blocks_side_by_side_change_no_bit(monkeypatch):
    """As on a CPU with several cores: the blocks of one order in threads."""
    stream, scores = markov_stream(20_000)
    cfg = tiny(vocab_size=50, ngram_order=9)
    monkeypatch.setattr(tg, "COUNT_CHUNK", 1000)
    alone = tg.final_scores(scores, stream, cfg)[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert torch.equal(tg.final_scores(scores, stream, cfg, tg.Ranks().map)[0], alone)
    finally:
        torch.set_num_threads(threads)


def test_large_vocabularies_and_hopeless_models_stay_finite():
    rng = np.random.default_rng(1)
    stream = np.concatenate([rng.integers(1, 65_536, 300), [65_535] * 50]).astype(np.uint16)
    nll = torch.full((len(stream) - 1,), 900.0, dtype=torch.float64)  # e^-900 is not a float64
    zeros = torch.zeros(len(stream), dtype=torch.float64)
    scores = tg.StreamScores(nll, zeros, zeros, {})
    mixed = tg.final_scores(scores, stream, tiny(vocab_size=65_536, ngram_order=5))[0]
    assert torch.isfinite(mixed).all()
    assert (mixed >= 0).all()
    assert mixed[-1] < 1


def test_the_gate_pays_at_most_its_price_where_counts_are_worthless():
    """Random tokens and a model that knows it.

    Each bucket may lose ln|grid| nats at most, beside the grid's smallest alpha.
    """
    rng = np.random.default_rng(2)
    n = 30_000
    vocab = 20
    stream = np.concatenate([[1], rng.integers(2, vocab, n - 1)]).astype(np.uint16)
    uniform = torch.full((n,), math.log(vocab - 2), dtype=torch.float64)
    ones = torch.ones(n, dtype=torch.float64)
    scores = tg.StreamScores(uniform[:-1], uniform, ones, {})
    mixed = tg.final_scores(scores, stream, tiny(vocab_size=vocab, ngram_order=5))[0]
    assert (mixed - scores.nll).sum() < 0.005 * scores.nll.sum()
