"""The canary inside real text: short bursts of known probability at hundreds of places.

Sampled text can be told from real text, so a scorer may be honest there. Here everything before a
burst is the real stream as it stands but for earlier bursts, dozens of tokens away. A burst is 1 to
8 tokens drawn from the referee's n-gram model g, given the real context. With a known chance each
is drawn without regard to the context, so that rare tokens come up, or is a BOS, which ends the
burst. What a valid scorer gains there over these probabilities is luck: the bound is that of the
canary.

Half of the places are drawn uniformly over the whole stream. The other half is drawn where the
official run claims most over g, since a false gain has to lie where there is gain. The claims are
known before the tokens are drawn, so the bound holds as well.
"""

from collections.abc import Sequence

import numpy as np

from eval.text.corpus.bytes import BOS
from eval.text.language.slices import LN2
from eval.trial.audit.experiments.canary import Canary
from eval.trial.audit.experiments.comparisons import Comparisons
from eval.trial.audit.experiments.long_runs import LongRun
from eval.trial.audit.experiments.material import Material
from eval.trial.runner.scorer import Scored, Stream

LONGEST = 8  # tokens of a burst
APART = 16  # tokens between the beginnings of two bursts, at least; contexts of g are shorter
FEWEST_BETWEEN = 64  # tokens of the stream for each burst: it has to go on looking real
BOS_SHARE = 0.02  # chance that a token of a burst is a BOS
RARE_SHARE = 0.1  # chance that it is drawn without regard to its context
WHERE_CLAIMED = 0.5  # share of the bursts that lie where the official run claims most
SHORTEST_PREFIX = 2  # tokens before the first burst


class Bursts(LongRun):
    """The real stream with bursts; `canary` gets their scores, the prefix must not have moved."""

    def __init__(self, material: Material, compare: Comparisons, canary: Canary):
        super().__init__(material, compare)
        self.canary = canary
        self.places = draw_places(material)
        self.label = f"{len(self.places)} bursts in the real stream"
        self.stream, self.drawn = draw_bursts(material, self.places)

    def streams(self) -> list[Stream]:
        return [Stream(self.stream)]

    def judge(self, scored: Sequence[Scored]) -> None:
        nll = scored[0].nll
        if nll is None or not len(self.places):
            return
        first = int(self.places[0])
        what = f"real stream, bursts of other tokens from token {first + 1:,} on"
        self.compare.prefix(self.official[: first - 1], nll[: first - 1], what)
        at = self.drawn - 1  # the score of a token stands one place before it
        log2_q = -nll / LN2
        log2_g = log2_known(self.material, self.stream)
        orders = seen_orders(self.material, self.stream)[at]
        for group in np.unique(orders):  # how sure g is: a bet of its own for each
            here = at[orders == group]
            self.canary.note(log2_q[here], log2_g[here])


def log2_known(material: Material, stream: np.ndarray) -> np.ndarray:
    """float64 [N-1]: log2 of the probability with which a burst has each target of a stream [N]."""
    by_context = np.exp2(np.nan_to_num(material.generator.log2(stream)))
    anything = material.generator.bottom[stream[1:]]
    token = (1 - BOS_SHARE - RARE_SHARE) * by_context + RARE_SHARE * anything
    return np.log2(np.where(stream[1:] == BOS, BOS_SHARE, token))


def seen_orders(material: Material, stream: np.ndarray) -> np.ndarray:
    """int64 [N-1]: how many orders of the n-gram model know the context of each target."""
    order = material.generator.order
    return material.generator.features(stream)[:, order : 2 * order - 1].sum(1).astype(np.int64)


def draw_places(material: Material) -> np.ndarray:
    """Where bursts begin, sorted, int64: `APART` or more from each other and from the end."""
    n = len(material.x)
    room = n - LONGEST - SHORTEST_PREFIX
    count = min(material.profile.bursts, room // FEWEST_BETWEEN)
    if count < 1:
        return np.zeros(0, np.int64)
    by_claim = int(WHERE_CLAIMED * count)
    uniform = material.rng.integers(SHORTEST_PREFIX, n - LONGEST, 2 * (count - by_claim))
    claimed = places_by_claim(material, 2 * by_claim)
    mixed = material.rng.permutation(np.concatenate([uniform, claimed]))
    taken: list[int] = []
    free = np.ones(n + APART, bool)
    for place in mixed.tolist():
        if free[place] and len(taken) < count:
            taken.append(place)
            free[max(place - APART + 1, 0) : place + APART] = False
    return np.sort(np.array(taken, np.int64))


def places_by_claim(material: Material, count: int) -> np.ndarray:
    """`count` places of the stream, drawn by how much the official run claims over g there."""
    gain = -material.official - LN2 * log2_known(material, material.x)  # nats of each target
    gain = np.maximum(gain, 0.0)[SHORTEST_PREFIX - 1 : len(material.x) - LONGEST - 1]
    if not gain.any():
        return np.zeros(0, np.int64)
    weight = np.sqrt(gain)  # a few places of certainty should not take all
    return material.rng.choice(len(weight), count, p=weight / weight.sum()) + SHORTEST_PREFIX


def draw_bursts(material: Material, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the real stream with bursts at `places`, the positions of all tokens of bursts)."""
    rng = material.rng
    stream = material.x.copy()
    span = max(material.generator.order, APART)
    lengths = rng.integers(1, LONGEST + 1, len(places))
    prefixes = [stream[max(place - span, 0) : place] for place in places.tolist()]
    bursts = grow(material, prefixes, lengths)
    drawn = np.zeros(len(stream), bool)
    for place, burst in zip(places.tolist(), bursts, strict=True):
        stream[place : place + len(burst)] = burst
        drawn[place : place + len(burst)] = True
    return stream, np.flatnonzero(drawn)


def grow(material: Material, prefixes: list[np.ndarray], lengths: np.ndarray) -> list[np.ndarray]:
    """Tokens behind each prefix, as many as `lengths` says or up to the first BOS."""
    rng = material.rng
    grown = list(prefixes)
    open_ones = np.arange(len(prefixes))
    for step in range(LONGEST):
        open_ones = open_ones[lengths[open_ones] > step]
        one_each = np.ones(len(open_ones), int)
        by_context = material.generator.sample(rng, [grown[k] for k in open_ones], one_each)
        anything = rng.choice(material.vocab_size, len(open_ones), p=material.generator.bottom)
        kind = rng.random(len(open_ones))
        for k, (own,), other, chance in zip(open_ones, by_context, anything, kind, strict=True):
            token = own if chance >= BOS_SHARE + RARE_SHARE else other
            grown[k] = np.append(grown[k], BOS if chance < BOS_SHARE else token)
        open_ones = open_ones[kind >= BOS_SHARE]
    return [tokens[len(prefix) :] for tokens, prefix in zip(grown, prefixes, strict=True)]
