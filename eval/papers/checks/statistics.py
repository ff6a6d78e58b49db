"""Compares two records: one-sided Welch tests on nats per byte, one value for each seed."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.errors import UserError
from eval.papers.checks.scores import ambiguous_log
from eval.papers.folder import Record, open_record
from eval.papers.submission.reading import load_submission
from eval.papers.submission.schema import Submission
from eval.rules import CURRENT, Rules, load_rules
from eval.text.corpus.exports import BYTES_TOLERANCE, KNOWN_EXPORTS

if TYPE_CHECKING:
    import numpy as np

LN2 = math.log(2)


@dataclass(frozen=True)
class Comparison:
    """Values in nats per byte, lower is better. `difference` = mean A - mean B, positive when B is better; `bound` is the largest improvement
    that the data refute at level p_value, seen from below: the true one exceeds it with confidence 1 - p_value. `p` is of the null hypothesis
    of no improvement, `p_bar` of an improvement by no more than the bar; `detectable` is the improvement that the test against the bar finds with
    probability 0.8 at this size and spread. None where a side has one seed."""

    a: "np.ndarray"
    b: "np.ndarray"
    difference: float
    df: float | None
    t: float | None
    p: float | None
    p_bar: float | None
    bound: float | None
    detectable: float | None


def welch(a: "np.ndarray", b: "np.ndarray", level: float, bar: float = 0.0) -> Comparison:
    """One-sided Welch tests of mean(b) < mean(a) and of mean(b) < mean(a) - bar."""
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Comparison(a, b, difference, None, None, None, None, None, None)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = math.sqrt(va + vb)
    if error <= 1e-9 * abs(
        a.mean()
    ):  # seeds that agree to the last digit: no spread to test against, rounding aside
        return Comparison(a, b, difference, None, None, None, None, difference, None)
    from scipy import stats

    df = float((va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)))
    critical = float(stats.t.ppf(1 - level, df))
    p, p_bar = (float(stats.t.sf((difference - null) / error, df)) for null in (0.0, bar))
    return Comparison(
        a,
        b,
        difference,
        df,
        difference / error,
        p,
        p_bar,
        difference - critical * error,
        bar + _detectable(critical, df) * error,
    )


def _detectable(critical: float, df: float, power: float = 0.8) -> float:
    """Noncentrality at which a one-sided t test with this critical value has the power, by bisection on the noncentral t distribution."""
    from scipy import stats

    low, high = 0.0, critical + 50.0
    for _ in range(80):
        middle = (low + high) / 2
        if stats.nct.sf(critical, df, middle) < power:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True)
class Side:
    """One record to compare: nats per byte by seed, float64 [n], and the size of the text that they are of."""

    folder: Path
    submission: Submission
    values: "np.ndarray"
    tokens: float
    bytes: float


def side(folder: Path) -> Side:
    """What a record folder gives to a comparison. Raises UserError when it states no score per seed or no text: a mean alone cannot be tested."""
    submission = load_submission(folder)
    if submission.data is None:
        return logged_side(open_record(folder))
    import numpy as np

    values = [r.val_bpb * LN2 for r in submission.seed_results.values()]
    if not values:
        raise UserError(
            f"{folder}: submission.json has no per-seed val_bpb; a mean alone cannot be compared, pack the record from its logs"
        )
    return Side(
        folder,
        submission,
        np.array(values),
        submission.data.val_tokens - 1,
        submission.data.val_bytes,
    )


def comparison_rules(a: Side, b: Side) -> Rules:
    """The rule set that both were made under. Raises UserError when the two were not scored on the same text under the same rules."""
    comparable(a.folder, b.folder, a.submission, b.submission)
    if abs(a.bytes / b.bytes - 1) > BYTES_TOLERANCE:
        raise UserError(
            f"{a.folder.name} and {b.folder.name}: scored on different texts: {a.bytes:,.0f} and {b.bytes:,.0f} bytes"
        )
    return load_rules(b.submission.rules_version or CURRENT)


def compare_sides(a: Side, b: Side, rules: Rules) -> Comparison:
    """The tests, with the bar of the rule set at B's tokens per byte."""
    return welch(
        a.values, b.values, rules.policy.p_value, rules.policy.improvement_nats * b.tokens / b.bytes
    )


def comparable(a_folder: Path, b_folder: Path, a: Submission, b: Submission) -> None:
    """Raises UserError when the papers say that the two were not scored on the same corpus, under the same rules or in the same track."""
    if a.data is not None and b.data is not None and a.data.version != b.data.version:
        raise UserError(
            f"{a_folder.name} and {b_folder.name}: scored on different corpora ({a.data.corpus} {a.data.version[:12]}… and {b.data.corpus} "
            f"{b.data.version[:12]}…), so their numbers are not on one scale"
        )
    if (a.data is None) != (b.data is None):
        silent = a_folder if a.data is None else b_folder
        raise UserError(
            f"{silent}: its submission.json does not say which corpus it was scored on, the other one does; compare records of one kind"
        )
    if a.rules_version != b.rules_version:
        raise UserError(
            f"{a_folder.name} and {b_folder.name}: made under rule sets {a.rules_version} and {b.rules_version}; audit both under one"
        )
    if a.track != b.track:
        raise UserError(
            f"{a_folder.name} and {b_folder.name}: tracks {a.track} and {b.track}; budgets differ, so the comparison says nothing"
        )


def logged_side(record: Record) -> Side:
    """A record for `compare`, by its logs alone. Raises UserError where they do not say on what text, or with which scores."""
    if record.submission is None:
        raise UserError(record.problem)
    if (text := _scored_text(record)) is None:
        raise UserError(
            f"{record.folder}: the logs do not say how large the validation text is, so nothing tells whether both texts are the same"
        )
    if unclear := ambiguous_log(record):
        raise UserError(
            f"{record.folder / unclear}: prints several scores that could be its result; nothing tells which one to compare"
        )
    import numpy as np

    values = [
        log.final.val_bpb * math.log(2) for log in record.by_seed.values() if log.final is not None
    ]
    if not values:
        raise UserError(
            f"{record.folder}: expected a log with a seed and a final score, found none; a mean alone cannot be compared"
        )
    return Side(
        record.folder,
        record.submission.model_copy(update={"track": record.track_name}),
        np.array(values),
        *text,
    )


def _scored_text(record: Record) -> tuple[float, float] | None:
    """(tokens, bytes) of the validation text by the first log that tells: its own count, or the published export of that many tokens."""
    for log in record.logs.values():
        if (tokens := log.integer("data.val_tokens")) is None:
            continue
        if (size := log.integer("result.scored_bytes")) is not None:
            return tokens, size
        export = next((e for e in KNOWN_EXPORTS if tokens in e.val_tokens), None)
        if export is not None:
            return tokens, export.bytes
    return None
