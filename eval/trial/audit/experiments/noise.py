"""How much scores differ that should be equal."""

from dataclasses import dataclass, field

import numpy as np

from eval.rules import Rules


@dataclass
class Noise:
    """Measured differences, in nats, between scores that should be equal.

    `limit` is the tolerance that follows."""

    rules: Rules
    samples: list[np.ndarray] = field(default_factory=list)

    def add(self, difference: np.ndarray) -> None:
        """Signed differences [n] of one comparison of reruns."""
        if len(difference):
            self.samples.append(np.abs(difference))

    @property
    def largest(self) -> float:
        return max((float(s.max()) for s in self.samples), default=0.0)

    @property
    def p99(self) -> float:
        """Of each comparison of reruns, then the largest.

        So one long quiet run does not hide what short streams show."""
        return max((float(np.percentile(s, 99)) for s in self.samples), default=0.0)

    @property
    def rms(self) -> float:
        return max((float(np.sqrt(np.square(s).mean())) for s in self.samples), default=0.0)

    @property
    def limit(self) -> float:
        t = self.rules.tolerance
        return max(t.exact, min(t.noise_factor * self.p99, t.noise_limit))
