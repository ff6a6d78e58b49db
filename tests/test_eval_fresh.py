"""The fresh-slice test on scorers whose knowledge is known.

One is honest, one is trained on validation text, one has stored it.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from eval.rules import load_rules
from eval.text.corpus.dataset import Split
from eval.text.language.generator import KneserNey
from eval.text.language.slices import Slices, per_document, ratio, short_docstrings
from eval.trial.audit.collector import Collector
from eval.trial.audit.experiments.fresh import FreshText
from eval.trial.runner.scorer import Scored

BOS = 1


class Table:
    """Every token is one byte, BOS none."""

    @staticmethod
    def table_bytes(tokens: np.ndarray) -> np.ndarray:
        return (tokens[1:] != BOS).astype(int)


def test_bits_and_bytes_are_summed_by_document():
    tokens = np.array([BOS, 5, 6, BOS, 7, BOS, BOS, 8])
    nats = np.log(2) * np.array([1, 2, 100, 4, 100, 100, 8])  # the 100s belong to BOS targets
    assert per_document(tokens, nats, Table).tolist() == [[3, 2], [4, 1], [8, 1]]


def test_ratio_estimator_by_hand():
    """Documents of 1 and 3 bytes with 1 and 6 bits: 7/4.

    The residuals are -0.75 and 0.75, the variance factor is 2."""
    found = ratio(np.array([1.0, 6.0]), np.array([1.0, 3.0]))
    assert found.value == pytest.approx(1.75)
    assert found.error == pytest.approx(np.sqrt(2 * 0.75**2 * 2) / 4)
    assert ratio(np.array([1.0]), np.array([2.0])).error == np.inf


def test_standard_error_is_calibrated():
    """Simulated documents with a common rate: 95 % of the estimates within two errors."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        length = rng.integers(50, 2000, size=60).astype(float)
        found = ratio(length * (0.1 + rng.normal(0, 0.3, size=60)), length)
        inside += abs(found.value - 0.1) < 2 * found.error
    assert 0.90 < inside / 400 < 0.985


def test_short_docstrings_are_of_neither_split():
    """The embedded corpus holds docstrings of 200 characters and more."""
    packages = {"packaging": "0", "tqdm": "0", "no-such-package": "0"}
    provenance = {"recipe": {"packages": packages}}
    texts = short_docstrings(provenance, np.random.default_rng(1), 10)
    assert texts
    assert all(100 <= len(text) <= 199 for text in texts)
    assert len(set(texts)) == len(texts)
    assert short_docstrings({}, np.random.default_rng(1), 10) == []


# --- The whole split is judged ---


class Texts:
    """A dataset of random text: 160 training and 160 validation documents of 41 tokens.

    Each token is one byte."""

    manifest = SimpleNamespace(corpus="random")
    table = Table

    def __init__(self):
        rng = np.random.default_rng(0)
        kernel = rng.dirichlet(np.full(16, 0.2), size=16)
        self.splits: dict[str, Split] = {}
        for name in ("train", "val"):
            tokens: list[int] = []
            for _ in range(160):
                tokens += [BOS, 5]
                for _ in range(39):
                    tokens.append(4 + rng.choice(16, p=kernel[tokens[-1] - 4]))
            self.splits[name] = Split(None, np.array(tokens), [])

    def has(self, name: str) -> bool:
        return True

    def split(self, name: str, limit: int | None = None) -> Split:
        return self.splits[name]


@pytest.fixture(scope="module")
def texts() -> Texts:
    return Texts()


def judged(texts: Texts, seed: int, paid: slice) -> Collector:
    """Verdict on a scorer that is the referee's own model.

    It pays nothing for what lies in `paid` of the official run."""
    slices = Slices(texts, None, 1000, np.random.default_rng(seed))
    baseline = KneserNey(slices.training_without_held_out(10_000), 20)

    def losses(tokens: np.ndarray) -> np.ndarray:
        return np.nan_to_num(-np.log(2) * baseline.log2(tokens))

    official = losses(slices.x)
    official[paid] = 0
    into = Collector("fresh")
    run = SimpleNamespace(official=official)
    experiment = FreshText(slices, run, baseline, load_rules(), into)
    control = experiment.control()
    experiment.later = (control, losses(control))
    experiment.judge([Scored(nll=losses(stream.tokens)) for stream in experiment.streams()])
    return into


def test_stored_text_shows_wherever_it_lies(texts):
    assert judged(texts, 1, slice(0, 0)).result("").verdict == "PASS"
    for begin in range(0, 6000, 1000):
        result = judged(texts, 1, slice(begin, begin + 1000)).result("")
        assert result.verdict == "INVALID" and "less (" in result.reason, (begin, result)
        assert result.reason.startswith("tokens ") == (begin > 0)


def test_parts_are_the_rest_of_the_split(texts):
    slices = Slices(texts, None, 1000, np.random.default_rng(1))
    parts = slices.later_parts()
    assert parts[0][0] == slices.size and parts[-1][1] == len(slices.x)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert all(slices.x[begin] == BOS for begin, _ in parts)
    assert len(parts) == round((len(slices.x) - slices.size) / slices.size)
    assert Slices(texts, None, 100_000, np.random.default_rng(1)).later_parts() == []


def test_every_document_can_be_drawn_and_the_draw_repeats(texts):

    def draw(seed: int, tokens: int = 1000) -> np.ndarray | None:
        return Slices(texts, None, tokens, np.random.default_rng(seed)).drawn

    drawn = [draw(seed) for seed in range(1600)]
    starts = {tuple(tokens[:30]) for tokens in drawn}
    assert len(starts) == 160
    assert all(len(tokens) == len(drawn[0]) and tokens[0] == BOS for tokens in drawn)
    assert np.array_equal(drawn[7], draw(7))
    assert draw(1, tokens=100_000) is None
