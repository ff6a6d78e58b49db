"""The referee's n-gram model: exactly normalised, equal to a slow reference, and sampled from the
distribution that it states."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy import stats

from eval.text.language.generator import EPSILON, KneserNey, context_keys, gram_keys

BOS = 1
V = 12


def text(seed: int, documents: int = 40) -> np.ndarray:
    """Documents of a random second-order Markov source over 2..V-1."""
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(V - 2, 0.3), size=(V, V))
    out = []
    for _ in range(documents):
        older, newer = BOS, BOS
        out.append(BOS)
        for _ in range(rng.integers(0, 60)):
            token = 2 + int(rng.choice(V - 2, p=rows[older, newer]))
            out.append(token)
            older, newer = newer, token
    return np.array(out)


def grams_of(documents: list[np.ndarray], n: int) -> Counter[tuple[int, ...]]:
    """How often each n-gram that does not end in BOS occurs."""
    counted: Counter[tuple[int, ...]] = Counter()
    for document in documents:
        windows = [tuple(document[i : i + n].tolist()) for i in range(len(document) - n + 1)]
        counted.update(window for window in windows if window[-1] != BOS)
    return counted


class Slow:
    """Interpolated Kneser-Ney written down from its definition, with dictionaries."""

    def __init__(self, stream, order):
        documents = np.split(stream, np.flatnonzero(stream == BOS)[1:])
        grams = {n: grams_of(documents, n) for n in range(1, order + 1)}
        self.order = order
        self.counts = {n: dict(counted) for n, counted in grams.items()}
        for n in range(1, order):
            left = defaultdict(set)
            for gram in grams[n + 1]:
                left[gram[1:]].add(gram[0])
            self.counts[n] |= {gram: len(seen) for gram, seen in left.items()}

    def p(self, context, v, n=None):
        n = self.order if n is None else n
        if n == 1:
            return self.bottom(v)
        history = tuple(context[-(n - 1) :])
        lower = self.p(context, v, n - 1)
        if len(context) < n - 1 or BOS in history[1:]:
            return lower
        held = {gram: c for gram, c in self.counts[n].items() if gram[:-1] == history}
        if not held:
            return lower
        d = self.discount(n)
        total = sum(held.values())
        return (max(held.get((*history, v), 0) - d, 0) + d * len(held) * lower) / total

    def bottom(self, v):
        if v == BOS:
            return 0.0
        total = sum(self.counts[1].values())
        share = (1 - EPSILON) * self.counts[1].get((v,), 0) / total + EPSILON / V
        return share / (1 - EPSILON / V)  # BOS is left out

    def discount(self, n):
        counts = list(self.counts[n].values())
        once = counts.count(1)
        twice = counts.count(2)
        d = once / (once + 2 * twice) if once else 0.5
        return min(max(d, 0.1), 0.9)


@pytest.mark.parametrize("order", [2, 3, 5])
def test_equals_the_definition(order):
    model = KneserNey(text(1), V, order)
    slow = Slow(text(1), order)
    stream = text(2, documents=6)
    found = model.log2(stream)
    for i in range(len(stream) - 1):
        target = int(stream[i + 1])
        if target == BOS:
            assert np.isnan(found[i])
            continue
        begin = max(np.flatnonzero(stream[: i + 1] == BOS))
        expected = slow.p(stream[begin : i + 1].tolist(), target)
        assert 2 ** found[i] == pytest.approx(expected, rel=1e-12)


def test_every_row_sums_to_one():
    """After contexts that were seen, half seen and never seen, anywhere in a document."""
    model = KneserNey(text(3), V)
    stream = text(4)
    contexts = context_keys(stream, model.order - 1, model.bits)
    total = sum(model.probabilities(contexts, np.full(len(stream), v)) for v in range(V))
    assert np.abs(total - 1).max() < 1e-12


def test_samples_follow_the_stated_probabilities():
    """Chi-square of 200,000 draws after one context, all expected counts above 5."""
    draws = 200_000
    model = KneserNey(text(5), V)
    prefix = np.array([BOS, 3, 4])
    samples = model.sample(np.random.default_rng(6), [prefix] * draws, np.ones(draws, int))
    counts = np.bincount(np.concatenate(samples), minlength=V)
    contexts = [keys[[-1]].repeat(V) for keys in context_keys(prefix, model.order - 1, model.bits)]
    p = model.probabilities(contexts, np.arange(V))
    assert counts[p == 0].sum() == 0
    likely = p * draws > 5
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(p[likely], p[~likely].sum()) * draws
    tested = expected > 5
    scale = observed[tested].sum() / expected[tested].sum()
    assert stats.chisquare(observed[tested], expected[tested] * scale).pvalue > 1e-4


def test_sampled_text_has_the_length_and_the_entropy_that_the_model_says():
    """Mean of -log2 g over own samples against the exact expectation step by step: the law of
    large numbers, within 5 standard errors."""
    model = KneserNey(text(7), V)
    rng = np.random.default_rng(8)
    lengths = rng.integers(0, 50, size=400)
    parts = model.sample(rng, [np.array([BOS])] * 400, lengths)
    assert [len(part) for part in parts] == lengths.tolist()
    stream = np.concatenate([np.concatenate([[BOS], part]) for part in parts])
    contexts = context_keys(stream[:-1], model.order - 1, model.bits)
    columns = [model.probabilities(contexts, np.full(len(stream) - 1, v)) for v in range(V)]
    p = np.stack(columns, 1)
    bits = -np.log2(np.where(p > 0, p, 1))  # p 0 adds nothing
    mean = (p * bits).sum(1)
    variance = (p * bits**2).sum(1) - mean**2
    inside = stream[1:] != BOS
    surprise = -model.log2(stream)[inside] - mean[inside]
    assert abs(surprise.sum()) < 5 * np.sqrt(variance[inside].sum())


def test_features_hold_every_order():
    model = KneserNey(text(9), V)
    stream = text(10)
    inside = stream[1:] != BOS
    rows = model.features(stream)
    assert rows.shape == (len(stream) - 1, 2 * model.order)
    bits = -model.log2(stream)
    np.testing.assert_allclose(rows[inside, model.order - 1], bits[inside], rtol=1e-12)


def test_keys_stay_inside_documents():
    stream = np.array([BOS, 5, 6, BOS, 7])
    assert gram_keys(stream, 3, 4).tolist() == [(BOS << 8) + (5 << 4) + 6]
    pairs = [-1, (BOS << 4) + 5, (5 << 4) + 6, -1, (BOS << 4) + 7]
    assert context_keys(stream, 2, 4)[1].tolist() == pairs


def test_no_text_gives_a_uniform_model():
    model = KneserNey(np.array([BOS]), V)
    (drawn,) = model.sample(np.random.default_rng(0), [np.array([BOS])], np.array([300]))
    assert BOS not in drawn and len(set(drawn.tolist())) == V - 1
