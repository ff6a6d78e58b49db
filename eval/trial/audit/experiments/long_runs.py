"""Experiments on runs as long as the real stream."""

import itertools
from collections.abc import Callable

import numpy as np

from eval.text.corpus.bytes import BOS
from eval.trial.audit.experiments.comparisons import Comparisons
from eval.trial.audit.experiments.rules import (
    LN2,
    RULE_CANARY,
    RULE_PROBES,
)
from eval.trial.runner.scorer import Stream

LAMBDAS = np.array([1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001])
CONTROL_AT = 0.7  # share of the real stream that control documents should stand behind, as near as a splice lies


class LongRuns(Comparisons):
    """Runs as long as the real stream: official, probed, splice, tail cut."""

    def run_official(self) -> np.ndarray | None:
        """nll [N-1] of the record's own run, None where it broke the contract."""
        (scored,) = self._score([Stream(self.x)], "official")
        self.official = scored.nll
        return scored.nll

    def _splice_points(self) -> list[int]:
        """Positions t at which the long runs leave the real stream. One lies in the second half; with several, they spread over the whole."""
        n = len(self.x)
        if self.profile.late_splices == 1:
            return [int(self.rng.integers(int(0.55 * n), int(0.8 * n)))]
        edges = np.linspace(0.02, 0.98, self.profile.late_splices + 1)
        return [
            int(self.rng.integers(int(a * n), max(int(b * n), int(a * n) + 1)))
            for a, b in itertools.pairwise(edges)
        ]

    def _probed(self, step: Callable[[str], None], splices: list[int]) -> dict[int, np.ndarray]:
        """Run with probes on the real stream with other last tokens; returns the row at each probed position before those."""
        step("probed")
        n, k = len(self.x), min(self.profile.probes, len(self.x))
        t = self.tail_point
        end = n - 1 - self.rng.integers(0, min(64, n), size=max(k // 16, 1))
        near_bos = np.flatnonzero(self.x == BOS)
        near_bos = (
            self.rng.choice(near_bos, min(len(near_bos), max(k // 16, 1)), replace=False)[:, None]
            + np.array([-1, 0, 1])
        ).ravel()
        anywhere = self.rng.choice(n, max(k - len(end) - len(near_bos), 1), replace=False)
        positions = np.concatenate([anywhere, end, near_bos, splices, [n - 1, t]]).astype(np.int64)
        positions = np.unique(positions[(positions >= 0) & (positions < n)])
        stream = np.concatenate([self.x[: t + 1], self._other_tail(self.x[t + 1 :])])
        (scored,) = self._score([Stream(stream, positions)], "probed, last tokens replaced")
        if scored.nll is not None:
            difference = scored.nll[:t] - self.official[:t]
            self.into["future"].ran_check()
            self.into["future"].figure(
                "largest_change_before_a_changed_token_nats",
                float(np.abs(difference).max(initial=0.0)),
            )
            if np.abs(difference).max(initial=0.0) <= self.rules.tolerance.exact:
                self.noise.add(difference)
            else:
                self._explain(step, scored.nll, positions)
        if scored.probe is None:
            return {}
        self._check_rows(stream, positions, scored, "real stream")
        return {p: row for p, row in zip(positions.tolist(), scored.probe, strict=True) if p <= t}

    def _explain(self, step: Callable[[str], None], nll: np.ndarray, positions: np.ndarray) -> None:
        """The probed run with its other tail differs from the official one. Two more runs say why: noise, the probes, or the tail."""
        t = self.tail_point
        step("official again")
        (again,) = self._score([Stream(self.x)], "official again")
        if again.nll is None:
            return
        rerun = again.nll - self.official
        self.noise.add(rerun)
        if self._too_noisy(rerun):
            self._report_noise(rerun, "the same run twice")
            return
        step("probed, nothing replaced")
        (exact,) = self._score([Stream(self.x, positions)], "probed, nothing replaced")
        if exact.nll is None:
            return
        signed = exact.nll - self.official
        self._check_mean("normalisation", signed, "scores with and without probes", RULE_PROBES)
        self._check_mean(
            "normalisation",
            signed[positions[positions < len(signed)]],
            "scores of probed positions with and without probes",
            RULE_PROBES,
        )
        difference = np.abs(signed)
        if difference.max() > self.noise.limit:
            place = int(difference.argmax())
            self.into["normalisation"].add(
                "INVALID",
                f"position {place + 1:,}" + (" (probed)" if place in positions else ""),
                f"the same loss with and without probes, {self.official[place]:.6f} ± {self.noise.limit:.2g}",
                f"{exact.nll[place]:.6f}; {np.count_nonzero(difference > self.noise.limit):,} positions differ",
                RULE_PROBES,
            )
        self._compare_prefix(
            exact.nll[:t], nll[:t], f"real stream, its last {len(self.x) - t - 1} tokens replaced"
        )

    def _splice(self, t: int, probed: dict[int, np.ndarray], control: np.ndarray | None) -> None:
        """Real up to t, then v, control documents for at most half of the rest, and sampled text, as long as the real stream."""
        v = self._other_token(probed.get(t), int(self.x[t + 1]))
        control = (
            np.zeros(0, np.int64) if control is None else control[: (len(self.x) - t - 2) // 2]
        )
        head = np.concatenate([self.x[: t + 1], [v], control])
        stream = self._sampled(head, len(self.x))
        (scored,) = self._score([Stream(stream)], f"splice at {t:,}")
        if scored.nll is None:
            return
        self._compare_prefix(
            self.official[:t],
            scored.nll[:t],
            f"real stream, everything from token {t + 1:,} on replaced",
        )
        if t in probed:
            self._check_substitution(
                t,
                v,
                float(scored.nll[t]),
                probed[t],
                self.noise.limit,
                f"real stream, token {t + 1:,} replaced",
            )
        if len(control) > 1:
            self.control_scored = control, scored.nll[t + 2 : t + 1 + len(control)]
        sampled = t + 1 + len(control)  # position before the first sampled token
        log2_g = self.generator.log2(stream)[sampled:]
        self._note_canary(-scored.nll[sampled:] / LN2, log2_g)

    def _tail(self, probed: dict[int, np.ndarray]) -> None:
        t = self.tail_point
        v = self._other_token(probed.get(t), int(self.x[t + 1]))
        (scored,) = self._score([Stream(np.append(self.x[: t + 1], v))], f"tail cut at {t:,}")
        if scored.nll is None:
            return
        self._compare_cut(
            [(self.official[:t], scored.nll[:t])],
            f"real stream cut after token {t + 1:,} of {len(self.x):,}",
        )
        if t in probed:
            limit = max(self.noise.limit, self.rules.tolerance.noise_max)
            self._check_substitution(
                t,
                v,
                float(scored.nll[t]),
                probed[t],
                limit,
                f"real stream cut after token {t + 1:,}",
            )

    def _note_canary(self, log2_q: np.ndarray, log2_g: np.ndarray) -> None:
        known = np.isfinite(log2_g)  # not the BOS tokens, which the referee placed itself
        self.log_ratios.append(log2_q[known] - log2_g[known])

    def _canary(self) -> None:
        """Test martingale: the product of 1 - l + l q/g has expectation at most 1 for every l in (0, 1] if q is a distribution that g's
        randomness did not enter before it was drawn; so has its mean over l. l = 1 is the plain likelihood ratio; small l see a sum that is a
        little above one although q and g differ much."""
        into, t = self.into["canary"], self.rules.tolerance
        if not self.log_ratios:
            into.skip("no sampled text was scored")
            return
        ratios = np.concatenate(self.log_ratios)
        into.ran_check()
        w = np.exp2(np.minimum(ratios, 200.0))
        growth = np.array(
            [np.log2(1 - lam + lam * w).sum() if lam < 1 else ratios.sum() for lam in LAMBDAS]
        )
        top = growth.max()
        bits = float(top + np.log2(np.exp2(growth - top).mean()))
        capped = np.minimum(w, 1e6)
        variance = float(((capped - 1) ** 2).mean())
        into.figure("evidence_bits", bits)
        into.figure("log_likelihood_ratio_bits", float(ratios.sum()))
        into.figure("sampled_tokens", len(ratios))
        into.figure("mean_of_q_over_g", float(capped.mean()))
        into.figure(
            "smallest_visible_excess_of_the_sum",
            float(
                np.sqrt(2 * LN2 * (t.canary_bits + np.log2(len(LAMBDAS))) * variance / len(ratios))
            ),
        )
        into.tolerance = f"{t.canary_bits:g} bits"
        into.tolerance_source = f"Markov's inequality: a valid scorer gets there with probability 2^-{t.canary_bits:g}; no noise enters"
        if bits > t.canary_bits:
            into.add(
                "INVALID",
                f"{len(ratios):,} sampled tokens",
                f"at most {t.canary_bits:g} bits",
                f"{bits:,.1f} bits (mean of q/g {capped.mean():.4g})",
                RULE_CANARY,
            )
