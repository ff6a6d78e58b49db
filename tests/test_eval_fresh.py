"""The fresh-slice test on scorers whose knowledge is known: honest, trained on validation, stored text."""

import numpy as np
import pytest

from eval.fresh import per_document, ratio, short_docstrings

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
    """Documents of 1 and 3 bytes with 1 and 6 bits: 7/4; residuals -0.75 and 0.75, variance factor 2."""
    found = ratio(np.array([1.0, 6.0]), np.array([1.0, 3.0]))
    assert found.value == pytest.approx(1.75)
    assert found.error == pytest.approx(np.sqrt(2 * 0.75**2 * 2) / 4)
    assert ratio(np.array([1.0]), np.array([2.0])).error == np.inf


def test_standard_error_is_calibrated():
    """Simulated documents with a common rate: the estimate lies within two standard errors in about 95 % of the cases."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        length = rng.integers(50, 2000, size=60).astype(float)
        found = ratio(length * (0.1 + rng.normal(0, 0.3, size=60)), length)
        inside += abs(found.value - 0.1) < 2 * found.error
    assert 0.90 < inside / 400 < 0.985


def test_short_docstrings_are_of_neither_split():
    """The embedded corpus holds docstrings of 200 characters and more."""
    texts = short_docstrings({"recipe": {"packages": {"packaging": "0", "tqdm": "0", "no-such-package": "0"}}}, np.random.default_rng(1), 10)
    assert texts and all(100 <= len(text) <= 199 for text in texts) and len(set(texts)) == len(texts)
    assert short_docstrings({}, np.random.default_rng(1), 10) == []
