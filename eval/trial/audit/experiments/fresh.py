"""The fresh-slice test: does the artifact know the validation text better than it should?

How hard a text is, a plain baseline says: the referee's n-gram model, fitted on training text. On
text of a control slice the submission's loss of each token is regressed on the n-gram losses of
all orders; the same line then says what the submission should pay for each validation document.
What it pays less is *excess*, in bits per byte. (One n-gram loss instead of the regression needs
three times as many documents for the same standard error: measured on the fixtures.) A scorer
that learns from the stream does better the more it has read, so both sides of a comparison come
behind about equally much text.

* training: the control is documents of the training split that the baseline was not fitted on.
  The submission has trained on them and not on the validation text, so its excess on validation
  should be negative. It is positive for a scorer that holds validation text. The validation side
  is the official run's first part, and a slice as long that begins at a document drawn by chance,
  scored as its own stream.
* later: the rest of the official run, cut into parts of about that length, each against training
  documents that stand behind some 0.7 of the real stream, in a run that leaves it there
  (long_runs.py, Splice); and all of it together. Parts before that point have read less than the
  control, which makes the test milder there, and never harder.
* outside: the control is documents of neither split, if there are any (--fresh DIR; for the
  embedded corpus the shorter docstrings of the same packages, which the corpus leaves out, against
  validation documents cut to the same lengths).
* opening: the same validation documents behind another first document. Nothing should change; it
  does for text that is stored and found again by position or by how the stream opens. This is said
  of the first part only: later ones are the better for what stands before them.

Standard errors are over documents (ratio estimator), so a few long documents do not decide.
"""

from collections.abc import Sequence

import numpy as np

from eval.rules import Rules
from eval.text.corpus.bytes import BOS
from eval.text.language.generator import KneserNey
from eval.text.language.slices import LN2, Saved, Scores, Slices, per_document, ratio
from eval.trial.audit.collector import Collector
from eval.trial.audit.experiments.experiment import Experiment
from eval.trial.audit.experiments.material import Material
from eval.trial.runner.scorer import Scored, Stream

FEWEST = 8  # documents of a control, for a standard error that means something
RULE = "the artifact was made without the validation text"
CONTROLS = {
    "training": "training text, which it has trained on,",
    "training_later": "training text, which it has trained on,",
    "outside": "text of neither split",
}


class FreshText(Experiment):
    """The slices beside the official run, and the verdict on all of them.

    `later` are control documents that a splice has put behind the real stream, with their losses,
    None where that run gave no scores."""

    def __init__(
        self,
        slices: Slices,
        material: Material,
        baseline: KneserNey,
        rules: Rules,
        into: Collector,
    ):
        self.slices = slices
        self.material = material
        self.baseline = baseline
        self.tolerance = rules.tolerance
        self.into = into
        self.named = _name_streams(slices)
        self.later: Scores | None = None

    def control(self) -> np.ndarray | None:
        """Documents [M] for a splice to put behind the real stream, None where there are none."""
        return self.slices.control()

    def streams(self) -> list[Stream]:
        """Moved, training, drawn, fresh and short validation text, as far as there is any."""
        return [Stream(tokens) for tokens in self.named.values()]

    def judge(self, scored: Sequence[Scored]) -> None:
        t = self.tolerance
        for reason in self.slices.skipped:
            self.into.skip(reason)
        self.into.tolerance = (
            f"{t.fresh_bpb:g}, {t.fresh_opening_bpb:g} and {t.fresh_outside_bpb:g} "
            f"bits per byte beyond {t.fresh_z:g} standard errors"
        )
        self.into.tolerance_source = (
            "standard errors over documents, measured here; the floors are the rule set's"
        )
        losses: dict[str, Scores] = {}
        for (name, tokens), result in zip(self.named.items(), scored, strict=True):
            if len(result.ruled_out):
                self.into.skip(f"the {name} slice, of which the scorer rules tokens out")
            elif result.nll is not None:
                losses[name] = (tokens, result.nll)
        size = self.slices.size
        first_part = (self.slices.x[:size], self.material.official[: size - 1])
        if "training" in losses:
            control = losses["training"]
            self._compare("training", {"": first_part}, control, t.fresh_bpb)
            if "drawn" in losses:
                self._compare("training", {"": losses["drawn"]}, control, t.fresh_bpb)
        self._judge_later()
        if "fresh" in losses:
            inside = losses.get("short", first_part)
            self._compare("outside", {"": inside}, losses["fresh"], t.fresh_outside_bpb)
        if "moved" in losses:
            self._judge_opening(losses["moved"])

    def _judge_later(self) -> None:
        slices = self.slices
        if self.later is not None and np.count_nonzero(self.later[0] == BOS) >= FEWEST:
            official = self.material.official
            parts: dict[str, Scores] = {}
            for begin, end in slices.later_parts():
                where = f"tokens {begin:,} to {end:,}: "
                parts[where] = (slices.x[begin:end], official[begin : end - 1])
            self._compare("training_later", parts, self.later, self.tolerance.fresh_bpb)
        elif slices.drawn is not None and slices.held_out:
            self.into.skip(
                f"fewer than {FEWEST} control documents behind the real stream, "
                "so the official run was judged in its first part only"
            )

    def _compare(self, name: str, parts: dict[str, Scores], control: Scores, floor: float) -> None:
        """Regress on `control`, apply to each of the `parts` and to all of them together."""
        control_tokens, control_nats = control
        inside = control_tokens[1:] != BOS
        features = self.baseline.features(control_tokens)
        line, *_ = np.linalg.lstsq(features[inside], control_nats[inside] / LN2, rcond=None)
        rows = {where: self._saved(scores, line) for where, scores in parts.items()}
        if len(rows) > 1:
            rows["the official run behind its first part: "] = np.concatenate(list(rows.values()))
        expected = ratio(*self._saved(control, line).T)
        self.into.ran_check()
        for where, documents in rows.items():
            found = ratio(*documents.T)
            excess = found.value - expected.value
            z = excess / max(float(np.hypot(found.error, expected.error)), 1e-12)
            self.into.figure(f"excess_over_{name}_bpb", excess)
            self.into.figure(f"excess_over_{name}_standard_errors", z)
            if excess > floor and z > self.tolerance.fresh_z:
                self.into.add(
                    "INVALID",
                    f"{where}{found.documents} validation documents",
                    f"the loss that {CONTROLS[name]} of the same difficulty has, "
                    f"- {floor:g} bits per byte",
                    f"{excess:.4f} bits per byte less ({z:.1f} standard errors)",
                    RULE,
                )

    def _saved(self, scores: Scores, line: np.ndarray) -> np.ndarray:
        """[documents, 2]: bits below what `line` expects of the baseline's losses, and bytes."""
        tokens, nats = scores
        expected = (self.baseline.features(tokens) @ line) * LN2
        return per_document(tokens, expected - nats, self.slices.table)

    def _judge_opening(self, moved: Scores) -> None:
        slices = self.slices
        moved_tokens, moved_nats = moved
        gain = self._gain_from_the_opening(moved_nats, shift=len(moved_tokens) - slices.size)
        floor = self.tolerance.fresh_opening_bpb
        z = gain.value / max(gain.error, 1e-12)
        self.into.ran_check()
        self.into.figure("gain_from_the_opening_bpb", gain.value)
        if gain.value > floor and z > self.tolerance.fresh_z:
            self.into.add(
                "INVALID",
                f"{gain.documents} validation documents",
                f"the same score behind another first document (± {floor:g} bits per byte)",
                f"{gain.value:.4f} better behind the real one ({z:.1f} standard errors)",
                RULE,
            )

    def _gain_from_the_opening(self, moved: np.ndarray, shift: int) -> Saved:
        """What the documents behind the first one cost less where it is the real one.

        `moved` are the losses behind another, which is `shift` tokens longer."""
        slices = self.slices
        begin, _ = slices.val[1]
        here = self.material.official[begin : slices.size - 1]
        there = moved[begin + shift :]
        rows = per_document(slices.x[begin : slices.size], there - here, slices.table)
        return ratio(rows[:, 0], rows[:, 1])


def _name_streams(slices: Slices) -> dict[str, np.ndarray]:
    named: dict[str, np.ndarray] = {}
    if len(slices.val) > 2 and slices.held_out:
        begin, end = slices.val[0]
        size = end - begin
        first = min(slices.held_out, key=lambda tokens: abs(len(tokens) - size))
        second_begin, _ = slices.val[1]
        named["moved"] = np.concatenate([first, slices.x[second_begin : slices.size]])
    if slices.held_out:
        named["training"] = np.concatenate(slices.held_out)[: slices.size]
    if slices.drawn is not None and slices.held_out:
        named["drawn"] = slices.drawn
    if slices.fresh_stream is not None:
        named["fresh"] = slices.fresh_stream
    if slices.short_val is not None:
        named["short"] = slices.short_val
    return named
