"""Experiments on runs as long as the real stream."""

import itertools
from collections.abc import Sequence

import numpy as np

from eval.text.corpus.bytes import BOS
from eval.text.language.slices import LN2, Scores
from eval.trial.audit.experiments.canary import Canary
from eval.trial.audit.experiments.comparisons import Comparisons
from eval.trial.audit.experiments.experiment import Experiment
from eval.trial.audit.experiments.material import LATEST_TAIL, Material
from eval.trial.audit.experiments.rules import RULE_PROBES
from eval.trial.runner.scorer import Scored, Stream

# Share of the real stream that control documents should stand behind, as near as a splice lies.
CONTROL_AT = 0.7
ONE_SPLICE = (0.55, 0.8)  # where a single splice lies, as shares of the real stream
MANY_SPLICES = (0.02, 0.98)  # over what part several splices spread
PROBES_AT_THE_END = 16  # one probe in so many is near the end, and one near a BOS


def splice_points(material: Material) -> list[int]:
    """Positions at which the long runs leave the real stream.

    One lies in the second half; several spread over the whole."""
    n = len(material.x)
    count = material.profile.late_splices
    if count == 1:
        low, high = (int(share * n) for share in ONE_SPLICE)
        return [int(material.rng.integers(low, high))]
    edges = [int(share * n) for share in np.linspace(*MANY_SPLICES, count + 1)]
    return [
        int(material.rng.integers(low, max(high, low + 1)))
        for low, high in itertools.pairwise(edges)
    ]


class Official(Experiment):
    """The real stream, nothing probed: the record's own run, about which all claims are."""

    label = "official"

    def __init__(self, material: Material):
        self.material = material

    def streams(self) -> list[Stream]:
        return [Stream(self.material.x)]

    def judge(self, scored: Sequence[Scored]) -> None:
        """Hand the losses to the other experiments, None where they broke the contract."""
        (own,) = scored
        self.material.official = None if own.impossible() else own.nll


class LongRun(Experiment):
    """A run that is compared with the official one."""

    def __init__(self, material: Material, compare: Comparisons):
        self.material = material
        self.compare = compare

    @property
    def x(self) -> np.ndarray:
        return self.material.x

    @property
    def official(self) -> np.ndarray:
        return self.material.official


class Probed(LongRun):
    """The real stream with other last tokens, and with probes, some of them at `splices`.

    Neither may move the scores before those last tokens; `moved` says whether something did."""

    label = "probed, last tokens replaced"

    def __init__(self, material: Material, compare: Comparisons, splices: Sequence[int]):
        super().__init__(material, compare)
        self.positions = self._draw_positions(splices)
        t = material.tail_point
        self.stream = np.concatenate([self.x[: t + 1], material.other_tail(self.x[t + 1 :])])
        self.scored = Scored()
        self.moved = False

    def _draw_positions(self, splices: Sequence[int]) -> np.ndarray:
        rng = self.material.rng
        n = len(self.x)
        count = min(self.material.profile.probes, n)
        share = max(count // PROBES_AT_THE_END, 1)
        end = n - 1 - rng.integers(0, min(LATEST_TAIL, n), size=share)
        starts = np.flatnonzero(self.x == BOS)
        chosen = rng.choice(starts, min(len(starts), share), replace=False)
        near_bos = (chosen[:, None] + np.array([-1, 0, 1])).ravel()
        anywhere = rng.choice(n, max(count - len(end) - len(near_bos), 1), replace=False)
        always = [*splices, n - 1, self.material.tail_point]
        positions = np.concatenate([anywhere, end, near_bos, always]).astype(np.int64)
        return np.unique(positions[(positions >= 0) & (positions < n)])

    def streams(self) -> list[Stream]:
        return [Stream(self.stream, self.positions)]

    def judge(self, scored: Sequence[Scored]) -> None:
        """The scores; `judge_rows` comes when the noise is known."""
        (self.scored,) = scored
        if self.scored.nll is None:
            return
        t = self.material.tail_point
        difference = self.scored.nll[:t] - self.official[:t]
        largest = float(np.abs(difference).max(initial=0.0))
        future = self.compare.into["future"]
        future.ran_check()
        future.figure("largest_change_before_a_changed_token_nats", largest)
        self.moved = largest > self.compare.tolerance.exact
        if not self.moved:
            self.compare.noise.add(difference)

    def judge_rows(self) -> dict[int, np.ndarray]:
        """Check the rows; returns those [V] of the positions before the replaced tokens."""
        if self.scored.probe is None:
            return {}
        self.compare.rows(self.stream, self.positions, self.scored, "real stream")
        t = self.material.tail_point
        rows = zip(self.positions.tolist(), self.scored.probe, strict=True)
        return {position: row for position, row in rows if position <= t}


class OfficialAgain(LongRun):
    """The real stream once more, where the probed run differs from the official one."""

    label = "official again"

    def __init__(self, material: Material, compare: Comparisons):
        super().__init__(material, compare)
        self.quiet = False  # the rerun gave the same scores, but for rounding

    def streams(self) -> list[Stream]:
        return [Stream(self.x)]

    def judge(self, scored: Sequence[Scored]) -> None:
        (again,) = scored
        if again.nll is None:
            return
        difference = again.nll - self.official
        self.compare.noise.add(difference)
        self.quiet = not self.compare.too_noisy(difference)
        if not self.quiet:
            self.compare.report_noise(difference, "the same run twice")


class ProbedUnchanged(LongRun):
    """The real stream as it is, with the probes of `probed`: was it they that moved the scores?"""

    label = "probed, nothing replaced"

    def __init__(self, probed: Probed):
        super().__init__(probed.material, probed.compare)
        self.probed = probed

    def streams(self) -> list[Stream]:
        return [Stream(self.x, self.probed.positions)]

    def judge(self, scored: Sequence[Scored]) -> None:
        (exact,) = scored
        if exact.nll is None:
            return
        self._effect_of_probes(exact.nll)
        t = self.material.tail_point
        replaced = len(self.x) - t - 1
        self.compare.prefix(
            exact.nll[:t],
            self.probed.scored.nll[:t],
            f"real stream, its last {replaced} tokens replaced",
        )

    def _effect_of_probes(self, nll: np.ndarray) -> None:
        signed = nll - self.official
        positions = self.probed.positions
        self.compare.mean("normalisation", signed, "scores with and without probes", RULE_PROBES)
        self.compare.mean(
            "normalisation",
            signed[positions[positions < len(signed)]],
            "scores of probed positions with and without probes",
            RULE_PROBES,
        )
        size = np.abs(signed)
        limit = self.compare.noise.limit
        if size.max() > limit:
            place = int(size.argmax())
            probed = " (probed)" if place in positions else ""
            expected = self.official[place]
            self.compare.into["normalisation"].add(
                "INVALID",
                f"position {place + 1:,}{probed}",
                f"the same loss with and without probes, {expected:.6f} ± {limit:.2g}",
                f"{nll[place]:.6f}; {np.count_nonzero(size > limit):,} positions differ",
                RULE_PROBES,
            )


class Splice(LongRun):
    """Real up to position t, then a token, control documents if there are any, and sampled text.

    The stream is as long as the real one; `control` [M] takes at most half of what follows t.
    `rows` are those of the probed run, by position. The scores of sampled text go to `canary`."""

    def __init__(
        self,
        probed: Probed,
        t: int,
        rows: dict[int, np.ndarray],
        control: np.ndarray | None,
        canary: Canary,
    ):
        super().__init__(probed.material, probed.compare)
        self.label = f"splice at {t:,}"
        self.t = t
        self.row = rows.get(t)
        self.token = self.material.other_token(self.row, int(self.x[t + 1]))
        room = (len(self.x) - t - 2) // 2
        self.control = np.zeros(0, np.int64) if control is None else control[:room]
        head = np.concatenate([self.x[: t + 1], [self.token], self.control])
        self.stream = self.material.sampled(head, len(self.x))
        # The control documents that had room, with their losses.
        self.control_scored: Scores | None = None
        self.canary = canary

    def streams(self) -> list[Stream]:
        return [Stream(self.stream)]

    def judge(self, scored: Sequence[Scored]) -> None:
        nll = scored[0].nll
        if nll is None:
            return
        t = self.t
        self.compare.prefix(
            self.official[:t],
            nll[:t],
            f"real stream, everything from token {t + 1:,} on replaced",
        )
        if self.row is not None:
            self.compare.substitution(
                self.token,
                float(nll[t]),
                self.row,
                self.compare.noise.limit,
                f"real stream, token {t + 1:,} replaced",
            )
        sampled = t + 1 + len(self.control)  # position before the first sampled token
        if len(self.control) > 1:
            self.control_scored = (self.control, nll[t + 2 : sampled])
        log2_g = self.material.generator.log2(self.stream)[sampled:]
        self.canary.note(-nll[sampled:] / LN2, log2_g)


class TailCut(LongRun):
    """The real stream without its last tokens, so that its length differs."""

    def __init__(self, probed: Probed, rows: dict[int, np.ndarray]):
        super().__init__(probed.material, probed.compare)
        t = self.material.tail_point
        self.label = f"tail cut at {t:,}"
        self.row = rows.get(t)
        self.token = self.material.other_token(self.row, int(self.x[t + 1]))

    def streams(self) -> list[Stream]:
        return [Stream(np.append(self.x[: self.material.tail_point + 1], self.token))]

    def judge(self, scored: Sequence[Scored]) -> None:
        nll = scored[0].nll
        if nll is None:
            return
        t = self.material.tail_point
        what = f"real stream cut after token {t + 1:,}"
        self.compare.cut([(self.official[:t], nll[:t])], f"{what} of {len(self.x):,}")
        if self.row is not None:
            limit = max(self.compare.noise.limit, self.compare.tolerance.noise_max)
            self.compare.substitution(self.token, float(nll[t]), self.row, limit, what)
