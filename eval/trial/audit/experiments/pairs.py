"""Experiments on short streams: pairs that part at one position, and streams that come twice."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from eval.text.corpus.bytes import BOS
from eval.trial.audit.experiments.comparisons import NEAR, Comparisons
from eval.trial.audit.experiments.experiment import Experiment
from eval.trial.audit.experiments.material import Material
from eval.trial.audit.experiments.rules import RULE_FUTURE
from eval.trial.runner.scorer import Scored, Stream

TINY = (2, 24)  # tokens of a tiny pair's prefix
SHORTEST = 2  # tokens of another pair's prefix
NEXT_TO_A_POWER = 0.15  # share of the pairs whose prefix ends next to a multiple of a power of two
NEXT_TO_A_BOS = 0.15  # share of those whose prefix ends next to a BOS, where there is one
CUT = 0.25  # share of the pairs whose second stream ends where they part
MOST_REPEATS = 8
MOST_EXAMPLES = 3  # of the pairs that moved


@dataclass
class Pair:
    """Two streams that are equal in their first `shared` tokens and differ in the next.

    `cut`: the second one ends with that token. `row` [V] is what the scorer expected there."""

    first: np.ndarray
    shared: int
    cut: bool = False
    second: np.ndarray | None = None
    row: np.ndarray | None = None


@dataclass
class Moved:
    """How far the shared scores of a pair are apart: `difference` [shared - 1] in nats.

    `before` and `after` [shared - 1] are the losses themselves, `largest` the largest distance."""

    pair: Pair
    difference: np.ndarray
    before: np.ndarray
    after: np.ndarray
    largest: float = field(init=False)

    def __post_init__(self) -> None:
        self.largest = float(np.abs(self.difference).max())


class Pairs(Experiment):
    """Pairs share a prefix and part at one secret position.

    There the second stream takes a token drawn from the first one's own distribution."""

    def __init__(self, material: Material, compare: Comparisons):
        self.material = material
        self.compare = compare
        profile = material.profile
        self.pairs = [self._draw_pair() for _ in range(profile.pairs)]
        self.pairs += [self._draw_tiny_pair() for _ in range(profile.tiny_pairs)]
        self.first_scores: Sequence[Scored] = ()

    def streams(self) -> list[Stream]:
        return [Stream(pair.first, np.array([pair.shared - 1])) for pair in self.pairs]

    def later_streams(self, scored: Sequence[Scored]) -> list[Stream]:
        self.first_scores = scored
        for pair, first in zip(self.pairs, scored, strict=True):
            if first.probe is not None:
                pair.row = first.probe[0]
            token = self.material.other_token(pair.row, int(pair.first[pair.shared]))
            tail = np.zeros(0, np.int64)
            if not pair.cut:
                tail = self.material.other_tail(pair.first[pair.shared + 1 :])
            pair.second = np.concatenate([pair.first[: pair.shared], [token], tail])
        return [Stream(pair.second) for pair in self.pairs]

    def judge(self, scored: Sequence[Scored]) -> None:
        count = len(self.pairs)
        cuts: list[tuple[np.ndarray, np.ndarray]] = []
        moved: list[Moved] = []
        tested = 0
        for pair, first, second in zip(self.pairs, scored[:count], scored[count:], strict=True):
            if first.probe is not None:
                what = f"short stream of {len(pair.first)} tokens"
                self.compare.rows(pair.first, np.array([pair.shared - 1]), first, what)
            if first.nll is None or second.nll is None:
                continue
            tested += 1
            before = first.nll[: pair.shared - 1]
            after = second.nll[: pair.shared - 1]
            if pair.cut:
                cuts.append((before, after))
            elif pair.shared > 1:
                moved.append(Moved(pair, after - before, before, after))
            self._judge_substitution(pair, second.nll)
        future = self.compare.into["future"]
        future.ran_check(tested)
        future.figure("pairs_compared", tested, lambda a, b: a + b)
        if cuts:
            self.compare.cut(cuts, f"{len(cuts)} short streams cut")
        if moved:
            self._judge_moved(moved)

    def _judge_substitution(self, pair: Pair, nll: np.ndarray) -> None:
        if pair.row is None:
            return
        limit = self.compare.noise.limit
        if pair.cut:
            limit = max(limit, self.compare.tolerance.noise_max)
        self.compare.substitution(
            int(pair.second[pair.shared]),
            float(nll[pair.shared - 1]),
            pair.row,
            limit,
            f"short stream, token {pair.shared + 1:,} replaced",
        )

    def _judge_moved(self, moved: list[Moved]) -> None:
        self.compare.mean(
            "future",
            np.concatenate([one.difference for one in moved]),
            f"{len(moved)} short streams, their last tokens replaced",
            RULE_FUTURE,
        )
        self.compare.near_differences += [one.difference[-NEAR:] for one in moved]
        future = self.compare.into["future"]
        largest = max(one.largest for one in moved)
        future.figure("largest_change_before_a_changed_token_nats", largest)
        limit = self.compare.noise.limit
        bad = [one for one in moved if one.largest > limit]
        for one in sorted(bad, key=lambda one: -one.largest)[:MOST_EXAMPLES]:
            place = int(np.abs(one.difference).argmax())
            future.add(
                "INVALID",
                f"short stream of {len(one.pair.first)} tokens, "
                f"changed from token {one.pair.shared + 1} on: token {place + 2}",
                f"loss {one.before[place]:.6f} ± {limit:.2g}",
                f"{one.after[place]:.6f} ({one.largest:.3g} apart); "
                f"{len(bad)} of {len(moved)} pairs moved",
                RULE_FUTURE,
            )

    # --- Drawing ---

    def _draw_pair(self) -> Pair:
        """A third of the prefixes end next to a BOS or to a multiple of a power of two."""
        rng = self.material.rng
        low = SHORTEST
        high = min(self.material.profile.pair_tokens, len(self.material.x) // 2)
        size = self._draw_length(low, high)
        kind = rng.random()
        to_power = kind < NEXT_TO_A_POWER
        to_bos = NEXT_TO_A_POWER < kind < NEXT_TO_A_POWER + NEXT_TO_A_BOS
        text = self.material.excerpt(high + 4 + high // 4, at_document=to_bos)
        starts = np.flatnonzero(text[low:high] == BOS)
        if to_power:
            power = 2 ** int(rng.integers(4, max(5, int(np.log2(high)) + 1)))
            size = size // power * power + int(rng.integers(-1, 2))
        elif to_bos and len(starts):
            size = low + int(rng.choice(starts)) + int(rng.integers(-1, 3))
        size = min(max(size, low), high)
        rest = int(rng.integers(1, 1 + max(4, size // 4)))
        cut = rng.random() < CUT
        return Pair(text[: size + 1 + rest], size, cut)

    def _draw_tiny_pair(self) -> Pair:
        rng = self.material.rng
        low, high = TINY
        size = self._draw_length(low, high)
        kind = rng.random()
        to_bos = NEXT_TO_A_POWER < kind < NEXT_TO_A_POWER + NEXT_TO_A_BOS
        text = self.material.excerpt(high + 4 + high // 4, at_document=to_bos)
        size = min(max(size, low), high)
        rest = int(rng.integers(1, 4))
        return Pair(text[: size + 1 + rest], size)

    def _draw_length(self, low: int, high: int) -> int:
        """Log-uniform."""
        return int(np.exp(self.material.rng.uniform(np.log(low), np.log(high + 1))))


class Repeats(Experiment):
    """Some first streams of `pairs` once more in each run, among different others."""

    measures_noise = True

    def __init__(self, pairs: Pairs):
        self.pairs = pairs
        count = len(pairs.pairs)
        rng = pairs.material.rng
        self.chosen = rng.choice(count, min(MOST_REPEATS, count), replace=False).tolist()

    def streams(self) -> list[Stream]:
        return [Stream(self.pairs.pairs[k].first) for k in self.chosen]

    def later_streams(self, scored: Sequence[Scored]) -> list[Stream]:
        return self.streams()

    def judge(self, scored: Sequence[Scored]) -> None:
        differences: list[np.ndarray] = []
        for k, again in zip(self.chosen * 2, scored, strict=True):
            before = self.pairs.first_scores[k].nll
            if before is not None and again.nll is not None:
                differences.append(again.nll - before)
        if not differences:
            return
        compare = self.pairs.compare
        compare.into["future"].ran_check(len(differences))
        difference = np.concatenate(differences)
        if compare.too_noisy(difference):
            compare.report_noise(difference, "the same short stream twice, in other company")
        elif len(difference):
            compare.noise.add(difference)
