"""The referee's n-gram model: exactly normalised, equal to a slow reference, and sampled from the distribution that it states."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy import stats

from eval.text.language.generator import EPSILON, KneserNey, context_keys, gram_keys

BOS, V = 1, 12


def text(seed: int, documents: int = 40) -> np.ndarray:
    """Documents of a random second-order Markov source over 2..V-1."""
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(V - 2, 0.3), size=(V, V))
    out = []
    for _ in range(documents):
        a, b = BOS, BOS
        out.append(BOS)
        for _ in range(rng.integers(0, 60)):
            a, b = b, 2 + int(rng.choice(V - 2, p=rows[a, b]))
            out.append(b)
    return np.array(out)


class Slow:
    """Interpolated Kneser-Ney written down from its definition, with dictionaries."""

    def __init__(self, stream, order):
        split = np.split(stream, np.flatnonzero(stream == BOS)[1:])
        grams = {
            n: Counter(
                tuple(d[i : i + n])
                for d in split
                for i in range(len(d) - n + 1)
                if d[i + n - 1] != BOS
            )
            for n in range(1, order + 1)
        }
        self.order, self.counts = order, {}
        for n in range(1, order + 1):
            self.counts[n] = dict(grams[n])
            if n < order:
                left = defaultdict(set)
                for gram in grams[n + 1]:
                    left[gram[1:]].add(gram[0])
                self.counts[n] |= {gram: len(seen) for gram, seen in left.items()}

    def p(self, context, v, n=None):
        n = self.order if n is None else n
        if n == 1:
            total = sum(self.counts[1].values())
            share = (1 - EPSILON) * self.counts[1].get((v,), 0) / total + EPSILON / V
            norm = 1 - EPSILON / V  # BOS is left out
            return share / norm if v != BOS else 0.0
        history = tuple(context[-(n - 1) :])
        lower = self.p(context, v, n - 1)
        if len(context) < n - 1 or BOS in history[1:]:
            return lower
        held = {gram: c for gram, c in self.counts[n].items() if gram[:-1] == history}
        if not held:
            return lower
        once, twice = (sum(c == k for c in self.counts[n].values()) for k in (1, 2))
        d = min(max(once / (once + 2 * twice) if once else 0.5, 0.1), 0.9)
        total = sum(held.values())
        return (max(held.get((*history, v), 0) - d, 0) + d * len(held) * lower) / total


@pytest.mark.parametrize("order", [2, 3, 5])
def test_equals_the_definition(order):
    model, slow, stream = KneserNey(text(1), V, order), Slow(text(1), order), text(2, documents=6)
    found = model.log2(stream)
    for i in range(len(stream) - 1):
        if stream[i + 1] == BOS:
            assert np.isnan(found[i])
        else:
            begin = max(np.flatnonzero(stream[: i + 1] == BOS))
            assert 2 ** found[i] == pytest.approx(
                slow.p(stream[begin : i + 1].tolist(), int(stream[i + 1])), rel=1e-12
            )


def test_every_row_sums_to_one():
    """After contexts that were seen, half seen and never seen, at the start of a document and in its middle."""
    model, stream = KneserNey(text(3), V), text(4)
    contexts = context_keys(stream, model.order - 1, model.bits)
    total = sum(model.probabilities(contexts, np.full(len(stream), v)) for v in range(V))
    assert np.abs(total - 1).max() < 1e-12


def test_samples_follow_the_stated_probabilities():
    """Chi-square of 200,000 draws after one context, all expected counts above 5."""
    model, n = KneserNey(text(5), V), 200_000
    prefix = np.array([BOS, 3, 4])
    drawn = np.array(
        [s[0] for s in model.sample(np.random.default_rng(6), [prefix] * n, np.ones(n, int))]
    )
    contexts = [c[[-1]].repeat(V) for c in context_keys(prefix, model.order - 1, model.bits)]
    p = model.probabilities(contexts, np.arange(V))
    counts = np.bincount(drawn, minlength=V)
    likely = p * n > 5
    assert counts[p == 0].sum() == 0
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(p[likely], p[~likely].sum()) * n
    assert (
        stats.chisquare(
            observed[expected > 5],
            expected[expected > 5] * observed[expected > 5].sum() / expected[expected > 5].sum(),
        ).pvalue
        > 1e-4
    )


def test_sampled_text_has_the_length_and_the_entropy_that_the_model_says():
    """Mean of -log2 g over own samples against the exact expectation step by step: the law of large numbers, within 5 standard errors."""
    model, rng = KneserNey(text(7), V), np.random.default_rng(8)
    lengths = rng.integers(0, 50, size=400)
    parts = model.sample(rng, [np.array([BOS])] * 400, lengths)
    assert [len(p) for p in parts] == lengths.tolist()
    stream = np.concatenate([np.concatenate([[BOS], p]) for p in parts])
    contexts = context_keys(stream[:-1], model.order - 1, model.bits)
    rows = np.stack(
        [model.probabilities(contexts, np.full(len(stream) - 1, v)) for v in range(V)], 1
    )
    inside = stream[1:] != BOS
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -np.log2(rows)
        expected, second = (np.nansum(np.where(rows > 0, rows * bits**k, 0), 1) for k in (1, 2))
    surprise = -model.log2(stream)[inside] - expected[inside]
    assert abs(surprise.sum()) < 5 * np.sqrt((second - expected**2)[inside].sum())


def test_features_hold_every_order():
    model, stream = KneserNey(text(9), V), text(10)
    rows, inside = model.features(stream), stream[1:] != BOS
    assert rows.shape == (len(stream) - 1, 2 * model.order)
    np.testing.assert_allclose(
        rows[inside, model.order - 1], -model.log2(stream)[inside], rtol=1e-12
    )


def test_keys_stay_inside_documents():
    stream = np.array([BOS, 5, 6, BOS, 7])
    assert gram_keys(stream, 3, 4).tolist() == [(BOS << 8) + (5 << 4) + 6]
    assert context_keys(stream, 2, 4)[1].tolist() == [
        -1,
        (BOS << 4) + 5,
        (5 << 4) + 6,
        -1,
        (BOS << 4) + 7,
    ]


def test_no_text_gives_a_uniform_model():
    model = KneserNey(np.array([BOS]), V)
    (drawn,) = model.sample(np.random.default_rng(0), [np.array([BOS])], np.array([300]))
    assert BOS not in drawn and len(set(drawn.tolist())) == V - 1
