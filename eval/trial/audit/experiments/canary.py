"""The test `canary`: evidence, in bits, that scores of sampled text are no probabilities."""

import numpy as np

from eval.rules import Tolerance
from eval.text.language.slices import LN2
from eval.trial.audit.collector import Collector
from eval.trial.audit.experiments.rules import RULE_CANARY

LAMBDAS = np.array([1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001])
LARGEST_LOG2_RATIO = 200.0  # of one token, so that 2 to its power is finite
LARGEST_RATIO = 1e6  # of one token, in the figures that describe the distribution


class Canary:
    """Gathers log2 q - log2 g over all sampled text: q is the scorer's probability, g the known.

    `prefix` stands before the names of its figures, `where` behind the number of its tokens.
    `apart`: each call of `note` is a group with bets of its own. Groups are told apart by what
    stands before a token, so that the product of what they win is a martingale as well."""

    def __init__(self, prefix: str = "", where: str = "", apart: bool = False) -> None:
        self.apart = apart
        self.prefix = prefix
        self.where = where
        self.log_ratios: list[np.ndarray] = []

    def note(self, log2_q: np.ndarray, log2_g: np.ndarray) -> None:
        """Scores [n] of sampled tokens, in bits; log2 g is NaN for a BOS that the referee set."""
        known = np.isfinite(log2_g)
        self.log_ratios.append(log2_q[known] - log2_g[known])

    def judge(self, tolerance: Tolerance, into: Collector) -> None:
        """Test martingale: the evidence in bits, against what luck allows.

        The product of 1 - l + l q/g has expectation at most 1 for every l in (0, 1] if q is a
        distribution that g's randomness did not enter before the token was drawn; so has its mean
        over l. l = 1 is the plain likelihood ratio; a small l sees a sum that is a little above
        one although q and g differ much."""
        if not self.log_ratios:
            into.skip("no sampled text was scored")
            return
        ratios = np.concatenate(self.log_ratios)
        count = len(ratios)
        into.ran_check()
        q_over_g = _ratio(ratios)
        groups = self.log_ratios if self.apart else [ratios]
        bits = sum(_evidence(group, _ratio(group)) for group in groups)
        capped = np.minimum(q_over_g, LARGEST_RATIO)
        variance = float(((capped - 1) ** 2).mean())
        needed = tolerance.canary_bits + np.log2(len(LAMBDAS))
        visible = float(np.sqrt(2 * LN2 * needed * variance / count))
        into.figure(self.prefix + "evidence_bits", bits)
        into.figure(self.prefix + "log_likelihood_ratio_bits", float(ratios.sum()))
        into.figure(self.prefix + "sampled_tokens", count)
        into.figure(self.prefix + "mean_of_q_over_g", float(capped.mean()))
        into.figure(self.prefix + "smallest_visible_excess_of_the_sum", visible)
        into.tolerance = f"{tolerance.canary_bits:g} bits"
        into.tolerance_source = (
            "Markov's inequality: a valid scorer gets there with probability "
            f"2^-{tolerance.canary_bits:g}; no noise enters"
        )
        if bits > tolerance.canary_bits:
            into.add(
                "INVALID",
                f"{count:,} sampled tokens{self.where}",
                f"at most {tolerance.canary_bits:g} bits",
                f"{bits:,.1f} bits (mean of q/g {capped.mean():.4g})",
                RULE_CANARY,
            )


def _ratio(log2_ratios: np.ndarray) -> np.ndarray:
    return np.exp2(np.minimum(log2_ratios, LARGEST_LOG2_RATIO))


def _evidence(ratios: np.ndarray, q_over_g: np.ndarray) -> float:
    """log2 of the martingale: of the mean over LAMBDAS of each one's product over tokens."""
    growth = np.array([_growth(stake, ratios, q_over_g) for stake in LAMBDAS])
    top = growth.max()
    return float(top + np.log2(np.exp2(growth - top).mean()))


def _growth(stake: float, ratios: np.ndarray, q_over_g: np.ndarray) -> float:
    if stake == 1:
        return ratios.sum()
    return np.log2(1 - stake + stake * q_over_g).sum()
