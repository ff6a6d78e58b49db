"""Bursts in real text: only they change it, and their tokens come as often as is said."""

from types import SimpleNamespace

import numpy as np
import pytest

from eval.rules import load_rules
from eval.text.language.generator import BOS, KneserNey
from eval.trial.audit.experiments import bursts
from eval.trial.audit.experiments.canary import Canary
from eval.trial.audit.experiments.material import Material
from eval.trial.runner.scorer import Scored

V = 40


@pytest.fixture(scope="module")
def material() -> Material:
    """A stream of 40,000 tokens with a law of its own, and a model that was fitted on it."""
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.full(V, 0.1), V)
    rows[:, :BOS] = 0
    x = [BOS]
    for _ in range(40_000):
        law = rows[x[-1]] / rows[x[-1]].sum()
        x.append(BOS if rng.random() < 0.005 else int(rng.choice(V, p=law)))
    stream = np.array(x)
    profile = load_rules().profile["quick"].model_copy(update={"bursts": 500})
    held = Material(stream, V, KneserNey(stream, V), profile, rng)
    held.official = np.full(len(stream) - 1, np.log(V))
    return held


@pytest.fixture(scope="module")
def drawn(material) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(places, stream, positions of the tokens of bursts)."""
    places = bursts.draw_places(material)
    return (places, *bursts.draw_bursts(material, places))


def test_only_bursts_change_the_stream_and_no_two_touch(material, drawn):
    places, stream, at = drawn
    assert len(places) == 500 and np.diff(places).min() >= bursts.APART
    assert np.isin(np.flatnonzero(stream != material.x), at).all()
    assert np.isin(places, at).all() and len(at) <= bursts.LONGEST * len(places)


def test_tokens_come_as_often_as_is_said(material, drawn):
    """Whatever distribution q is, the mean of q/g over tokens drawn from g is 1."""
    _, stream, at = drawn
    log2_g = bursts.log2_known(material, stream)[at - 1]
    for q in (np.full(V, 1 / V), np.random.default_rng(1).dirichlet(np.ones(V))):
        ratio = q[stream[at]] / np.exp2(log2_g)
        error = ratio.std() / np.sqrt(len(at))
        # Id 0 and the other ids that g never has are q's alone.
        assert ratio.mean() == pytest.approx(1, abs=5 * error + 0.06)
    assert 0.005 < np.mean(stream[at] == BOS) < 0.04


def test_a_scorer_that_sees_a_burst_is_found_and_one_that_does_not_is_not(material):
    tolerance = load_rules().tolerance
    figures: dict[str, float] = {}
    into = SimpleNamespace(ran_check=lambda: None, figure=figures.__setitem__, add=lambda *_: None)
    compare = SimpleNamespace(prefix=lambda *_: None)
    for knows, found in ((0.0, False), (0.3, True)):
        canary = Canary(apart=True)
        run = bursts.Bursts(material, compare, canary)
        fair = np.exp2(bursts.log2_known(material, run.stream))
        p = np.where(np.isin(np.arange(1, len(run.stream)), run.drawn[::20]), knows, 0)
        run.judge([Scored(nll=-np.log(np.maximum(fair, p)))])
        canary.judge(tolerance, into)
        assert (figures["evidence_bits"] > tolerance.canary_bits) == found
