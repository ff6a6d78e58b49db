"""The fresh-slice test: does the artifact know the validation text better than it should?

How hard a text is, a plain baseline says: the referee's n-gram model, fitted on training text. On text of a control slice the submission's
loss of each token is regressed on the n-gram losses of all orders; the same line then says what the submission should pay for each
validation document. What it pays less is *excess*, in bits per byte. (One n-gram loss instead of the regression needs three times as
many documents for the same standard error: measured on the fixtures.) A scorer that learns from the stream does better the more it has read,
so both sides of a comparison come behind about equally much text.

* training: the control is documents of the training split that the baseline was not fitted on. The submission has trained on them and
  not on the validation text, so its excess on validation should be negative. It is positive for a scorer that holds validation text. The
  validation side is the official run's first part, and a slice as long that begins at a document drawn by chance, scored as its own stream.
* later: the rest of the official run, cut into parts of about that length, each against training documents that stand behind some 0.7 of the
  real stream, in a run that leaves it there (long_runs.py, splice); and all of it together. Parts before that point have read less than the control, which
  makes the test milder there, and never harder.
* outside: the control is documents of neither split, if there are any (--fresh DIR; for the embedded corpus the shorter docstrings of the
  same packages, which the corpus leaves out, against validation documents cut to the same lengths).
* opening: the same validation documents behind another first document. Nothing should change; it does for text that is stored and found
  again by position or by how the stream opens. Said of the first part only: later ones are the better for what stands before them.

Standard errors are over documents (ratio estimator), so a few long documents do not decide.
"""

import numpy as np

from eval.rules import Rules
from eval.text.corpus.bytes import BOS
from eval.text.language.generator import KneserNey
from eval.text.language.slices import (
    LN2,
    Scores,
    Slices,
    per_document,
    ratio,
)
from eval.trial.audit.collector import Collector
from eval.trial.runner.scorer import Scored, Stream

FEWEST = 8  # documents of a control, for a standard error that means something
RULE = "the artifact was made without the validation text"


class FreshSlices(Slices):
    """Hands out the slices as streams to score, and judges the scores."""

    def streams(self) -> list[Stream]:
        """Streams to score beside the official one: moved, training, drawn, fresh, short validation, as far as there are any."""
        self.named: dict[str, np.ndarray] = {}
        if len(self.val) > 2 and self.held_out:
            first = min(
                self.held_out, key=lambda t: abs(len(t) - (self.val[0][1] - self.val[0][0]))
            )
            self.named["moved"] = np.concatenate([first, self.x[self.val[1][0] : self.size]])
        if self.held_out:
            self.named["training"] = np.concatenate([t for t in self.held_out])[: self.size]
        if self.drawn is not None and self.held_out:
            self.named["drawn"] = self.drawn
        if self.fresh_stream is not None:
            self.named["fresh"] = self.fresh_stream
        if self.short_val is not None:
            self.named["short"] = self.short_val
        return [Stream(tokens) for tokens in self.named.values()]

    def judge(
        self,
        official: np.ndarray,
        scored: list[Scored],
        later: Scores | None,
        baseline: KneserNey,
        rules: Rules,
        into: Collector,
    ) -> None:
        """`scored` belong to `streams()`; `later` are the control documents behind the real stream, None where that run gave no scores."""
        losses = {
            name: result.nll
            for name, result in zip(self.named, scored, strict=True)
            if result.nll is not None
        }
        t = rules.tolerance
        for reason in self.skipped:
            into.skip(reason)
        into.tolerance = f"{t.fresh_bpb:g}, {t.fresh_opening_bpb:g} and {t.fresh_outside_bpb:g} bits per byte beyond {t.fresh_z:g} standard errors"
        into.tolerance_source = (
            "standard errors over documents, measured here; the floors are the rule set's"
        )
        val = self.x[: self.size], official[: self.size - 1]
        if "training" in losses:
            control = self.named["training"], losses["training"]
            self._compare(into, "training", {"": val}, control, baseline, t.fresh_bpb, t.fresh_z)
            if "drawn" in losses:
                self._compare(
                    into,
                    "training",
                    {"": (self.named["drawn"], losses["drawn"])},
                    control,
                    baseline,
                    t.fresh_bpb,
                    t.fresh_z,
                )
        if later is not None and np.count_nonzero(later[0] == BOS) >= FEWEST:
            parts = {
                f"tokens {begin:,} to {end:,}: ": (self.x[begin:end], official[begin : end - 1])
                for begin, end in self.later_parts()
            }
            self._compare(into, "training_later", parts, later, baseline, t.fresh_bpb, t.fresh_z)
        elif self.drawn is not None and self.held_out:
            into.skip(
                f"fewer than {FEWEST} control documents behind the real stream, so the official run was judged in its first part only"
            )
        if "fresh" in losses:
            inside = (self.named["short"], losses["short"]) if "short" in losses else val
            self._compare(
                into,
                "outside",
                {"": inside},
                (self.named["fresh"], losses["fresh"]),
                baseline,
                t.fresh_outside_bpb,
                t.fresh_z,
            )
        if "moved" in losses:
            self._opening(into, official, losses["moved"], t.fresh_opening_bpb, t.fresh_z)

    def _compare(
        self,
        into: Collector,
        name: str,
        parts: dict[str, Scores],
        control: Scores,
        baseline: KneserNey,
        floor: float,
        z_limit: float,
    ) -> None:
        """Regress on `control`, apply to each of the `parts` and to all of them together; control and parts are (ids [N], nats [N-1])."""
        inside = control[0][1:] != BOS
        line, *_ = np.linalg.lstsq(
            baseline.features(control[0])[inside], control[1][inside] / LN2, rcond=None
        )

        def saved(scores: Scores) -> np.ndarray:
            tokens, nats = scores
            return per_document(tokens, (baseline.features(tokens) @ line) * LN2 - nats, self.table)

        rows = {where: saved(scores) for where, scores in parts.items()}
        if len(rows) > 1:
            rows["the official run behind its first part: "] = np.concatenate(list(rows.values()))
        expected = ratio(*saved(control).T)
        text = (
            "text of neither split"
            if name == "outside"
            else "training text, which it has trained on,"
        )
        into.ran_check()
        for where, documents in rows.items():
            found = ratio(*documents.T)
            excess = found.value - expected.value
            z = excess / max(float(np.hypot(found.error, expected.error)), 1e-12)
            into.figure(f"excess_over_{name}_bpb", excess)
            into.figure(f"excess_over_{name}_standard_errors", z)
            if excess > floor and z > z_limit:
                into.add(
                    "INVALID", f"{where}{found.documents} validation documents",
                    f"the loss that {text} of the same difficulty has, - {floor:g} bits per byte",
                    f"{excess:.4f} bits per byte less ({z:.1f} standard errors)", RULE,
                )  # fmt: skip

    def _opening(
        self, into: Collector, official: np.ndarray, moved: np.ndarray, floor: float, z_limit: float
    ) -> None:
        begin = self.val[1][0]
        shift = len(self.named["moved"]) - self.size
        here, there = official[begin : self.size - 1], moved[begin + shift :]
        rows = per_document(self.x[begin : self.size], there - here, self.table)
        gain = ratio(rows[:, 0], rows[:, 1])
        z = gain.value / max(gain.error, 1e-12)
        into.ran_check()
        into.figure("gain_from_the_opening_bpb", gain.value)
        if gain.value > floor and z > z_limit:
            into.add(
                "INVALID", f"{gain.documents} validation documents", f"the same score behind another first document (± {floor:g} bits per byte)",
                f"{gain.value:.4f} better behind the real one ({z:.1f} standard errors)", RULE,
            )  # fmt: skip
