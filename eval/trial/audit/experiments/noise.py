"""How much scores differ that should be equal."""

from dataclasses import dataclass

import numpy as np

from eval.rules import Rules


@dataclass
class Noise:
    """Measured differences, in nats, between scores that should be equal.

    `largest` of all; `p99`, `rms` and `mean` size of each comparison of reruns, then the largest,
    so that one long quiet run does not hide what short streams show. `limit` is the tolerance that
    follows for one score."""

    rules: Rules
    largest: float = 0.0
    p99: float = 0.0
    rms: float = 0.0
    mean: float = 0.0

    def add(self, difference: np.ndarray) -> None:
        """Signed differences [n] of one comparison of reruns."""
        if not len(difference):
            return
        size = np.abs(difference)
        self.largest = max(self.largest, float(size.max()))
        self.p99 = max(self.p99, float(np.percentile(size, 99)))
        self.rms = max(self.rms, float(np.sqrt(np.square(size).mean())))
        self.mean = max(self.mean, float(size.mean()))

    @property
    def limit(self) -> float:
        t = self.rules.tolerance
        return max(t.exact, min(t.noise_factor * self.p99, t.noise_limit))
