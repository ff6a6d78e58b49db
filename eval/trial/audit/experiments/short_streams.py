"""Experiments on short streams: probed everywhere, swept over the vocabulary, and the shortest."""

from collections.abc import Sequence

import numpy as np

from eval.text.corpus.bytes import BOS
from eval.text.language.generator import context_keys
from eval.trial.audit.experiments.comparisons import Comparisons
from eval.trial.audit.experiments.experiment import Experiment
from eval.trial.audit.experiments.material import Material
from eval.trial.audit.experiments.rules import RULE_FUTURE, RULE_SUM, RULE_TOKEN
from eval.trial.runner.scorer import Scored, Stream

DENSE = (96, 385)  # tokens of a stream that is probed everywhere, the upper bound excluded
SHORT_SWEEP = (4, 33)  # tokens of a short sweep's prefix, the upper bound excluded
LONG_SWEEP = (48, 512)  # tokens of a long sweep's prefix
LONG_SWEEP_TOKENS = 1 << 16  # of all streams of a long sweep together


class ProbedEverywhere(Experiment):
    """Short streams [n] with a probe at every position."""

    def __init__(self, material: Material, compare: Comparisons):
        self.compare = compare
        self.texts: list[np.ndarray] = []
        left = material.profile.dense_tokens
        while left > 0:
            size = min(left, int(material.rng.integers(*DENSE)))
            self.texts.append(material.excerpt(size))
            left -= len(self.texts[-1])

    def streams(self) -> list[Stream]:
        return [Stream(tokens, np.arange(len(tokens))) for tokens in self.texts]

    def judge(self, scored: Sequence[Scored]) -> None:
        for number, (tokens, own) in enumerate(zip(self.texts, scored, strict=True), 1):
            if own.probe is not None:
                positions = np.arange(len(tokens))
                self.compare.rows(tokens, positions, own, f"short stream {number}")


class Sweep(Experiment):
    """One prefix [m], followed by each of `tokens` [k] in turn."""

    def __init__(
        self, material: Material, compare: Comparisons, prefix: np.ndarray, tokens: np.ndarray
    ):
        self.compare = compare
        self.prefix = prefix
        self.tokens = tokens
        self.whole = len(tokens) == material.vocab_size
        count = "every token" if self.whole else f"{len(tokens)} tokens"
        self.name = f"prefix of {len(prefix)} tokens, {count} of the vocabulary in turn"

    def streams(self) -> list[Stream]:
        """The first one has a probe behind the prefix."""
        first, *others = [np.append(self.prefix, token) for token in self.tokens.tolist()]
        probe = np.array([len(self.prefix) - 1])
        return [Stream(first, probe), *(Stream(tokens) for tokens in others)]

    def judge(self, scored: Sequence[Scored]) -> None:
        if any(own.nll is None for own in scored):
            return
        into = self.compare.into["normalisation"]
        into.ran_check()
        m = len(self.prefix)
        last = np.array([own.nll[m - 1] for own in scored])
        self._judge_sum(last)
        if scored[0].probe is not None:
            self._judge_row(last, scored[0].probe[0])
        if m > 1:
            self._judge_prefix(np.array([own.nll[: m - 1] for own in scored]))

    def _judge_sum(self, last: np.ndarray) -> None:
        """Probabilities of the swept tokens, whose losses are `last` [k] nats."""
        into = self.compare.into["normalisation"]
        tolerance = self.compare.tolerance.sum
        total = float(np.exp(-last).sum())
        into.figure("largest_swept_sum", total)
        if total > 1 + tolerance:
            into.add("INVALID", self.name, f"sum 1 ± {tolerance}", f"{total:.6g}", RULE_SUM)
        elif self.whole and total < 1 - tolerance:
            found = f"{total:.6g}: bits are wasted, none are gained"
            into.add("WARN", self.name, f"sum 1 ± {tolerance}", found, RULE_SUM)

    def _judge_row(self, last: np.ndarray, log_row: np.ndarray) -> None:
        into = self.compare.into["normalisation"]
        signed = last + log_row[self.tokens]
        signed = np.where(np.isfinite(signed), signed, 0.0)
        # One context rounds in one way: one difference, not one for each token.
        self.compare.token_differences.append(signed.mean(keepdims=True))
        off = np.abs(signed)
        into.figure("largest_substitution_error_nats", float(off.max()))
        limit = self.compare.noise.limit
        if off.max() > limit:
            k = int(off.argmax())
            token = self.tokens[k]
            into.add(
                "INVALID",
                f"{self.name}: id {token}",
                f"loss {-log_row[token]:.6f} ± {limit:.2g}",
                f"{last[k]:.6f}; {np.count_nonzero(off > limit)} tokens differ",
                RULE_TOKEN,
            )

    def _judge_prefix(self, shared: np.ndarray) -> None:
        """Losses [k, m - 1] of the prefix, which the token behind it must not move."""
        into = self.compare.into["future"]
        spread = float((shared.max(0) - shared.min(0)).max())
        into.ran_check()
        into.figure("largest_change_before_a_changed_token_nats", spread)
        limit = self.compare.noise.limit
        if spread > limit:
            where = f"{self.name}: an earlier token"
            into.add(
                "INVALID", where, f"equal losses ± {limit:.2g}", f"{spread:.3g} apart", RULE_FUTURE
            )


def draw_sweeps(material: Material, compare: Comparisons) -> list[Sweep]:
    """A short and a long sweep for each one that the profile asks for.

    The long ones try the likeliest tokens only."""
    rng = material.rng
    v = material.vocab_size
    most = material.profile.sweep_limit
    sweeps: list[Sweep] = []
    for _ in range(material.profile.sweeps):
        tokens = np.arange(v)
        if v > most:
            tokens = np.sort(rng.choice(v, most, replace=False))
        prefix = material.excerpt(int(rng.integers(*SHORT_SWEEP)))
        sweeps.append(Sweep(material, compare, prefix, tokens))
        long_prefix = material.excerpt(int(np.exp(rng.uniform(*np.log(LONG_SWEEP)))))
        count = min(v, LONG_SWEEP_TOKENS // len(long_prefix), most)
        sweeps.append(
            Sweep(material, compare, long_prefix, likeliest(material, long_prefix, count))
        )
    return sweeps


def likeliest(material: Material, prefix: np.ndarray, count: int) -> np.ndarray:
    """BOS and the tokens that the n-gram model expects after `prefix`, in ascending order.

    Few of them hold most of the mass, so that their sum can pass one."""
    v = material.vocab_size
    generator = material.generator
    keys_by_order = context_keys(prefix, generator.order - 1, generator.bits)
    contexts = [np.repeat(keys[-1:], v) for keys in keys_by_order]
    p = generator.probabilities(contexts, np.arange(v))
    p[BOS] = np.inf
    return np.sort(np.argsort(-p, kind="stable")[:count])


class Shortest(Experiment):
    """Streams of one and of two tokens, which the contract allows, in the second run."""

    def __init__(self, material: Material):
        self.x = material.x

    def streams(self) -> list[Stream]:
        return []

    def later_streams(self, scored: Sequence[Scored]) -> list[Stream]:
        return [Stream(self.x[:1], np.array([0])), Stream(self.x[:2])]

    def judge(self, scored: Sequence[Scored]) -> None:
        """Nothing to add: the engine has checked the contract."""
