"""Compares two records: one-sided Welch tests on nats per byte, one value for each seed."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.errors import UserError
from eval.papers.folder import Record
from eval.papers.submission.schema import Submission
from eval.rules import CURRENT, Rules, load_rules
from eval.text.corpus.exports import BYTES_TOLERANCE, KNOWN_EXPORTS

if TYPE_CHECKING:
    import numpy as np

LN2 = math.log(2)
POWER = 0.8  # with which the test finds a detectable improvement
NO_SPREAD = 1e-9  # of the mean: seeds that agree to the last digit differ by rounding alone


@dataclass(frozen=True)
class Comparison:
    """Two records' seeds, float64 [n] each, and the tests between them.

    Values in nats per byte, lower is better. None where no test is possible.

    * `difference` is mean A - mean B, positive when B is better.
    * `p` is of the null hypothesis of no improvement, `p_bar` of an improvement by no more than
      the bar.
    * `bound` is a one-sided confidence bound: with confidence 1 - p_value the true improvement
      exceeds it.
    * `detectable` is the improvement that the test against the bar finds with probability 0.8 at
      this size and spread.
    """

    a: "np.ndarray"
    b: "np.ndarray"
    difference: float
    df: float | None = None
    t: float | None = None
    p: float | None = None
    p_bar: float | None = None
    bound: float | None = None
    detectable: float | None = None


def welch(a: "np.ndarray", b: "np.ndarray", level: float, bar: float = 0.0) -> Comparison:
    """One-sided Welch tests of mean(b) < mean(a) and of mean(b) < mean(a) - bar.

    `a` and `b` are float64 [n] in nats per byte, as is `bar`; `level` is a probability.
    """
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Comparison(a, b, difference)
    error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    if error <= NO_SPREAD * abs(a.mean()):
        return Comparison(a, b, difference, bound=difference)
    test = _one_sided(a, b)
    df = float(test.df)
    return Comparison(
        a,
        b,
        difference,
        df=df,
        t=float(test.statistic),
        p=float(test.pvalue),
        p_bar=float(_one_sided(a - bar, b).pvalue),
        bound=float(test.confidence_interval(1 - level).low),
        detectable=bar + _detectable(level, df) * error,
    )


def _one_sided(a: "np.ndarray", b: "np.ndarray") -> Any:
    """scipy's Welch test of mean(b) < mean(a)."""
    import warnings

    from scipy import stats

    with warnings.catch_warnings():
        # that one side has no spread is no loss of precision here
        warnings.simplefilter("ignore", RuntimeWarning)
        return stats.ttest_ind(a, b, equal_var=False, alternative="greater")


def _detectable(level: float, df: float) -> float:
    """Noncentrality at which a one-sided t test at this level has the power."""
    from scipy import optimize, stats

    critical = stats.t.isf(level, df)

    def missing_power(noncentrality: float) -> float:
        return stats.nct.sf(critical, df, noncentrality) - POWER

    # Far above the critical value the test finds the effect, whatever the degrees of freedom.
    return optimize.brentq(missing_power, 0.0, 2 * (critical + 10))


@dataclass(frozen=True)
class Side:
    """One record to compare: nats per byte by seed, float64 [n], and the size of their text."""

    record: Record
    submission: Submission
    values: "np.ndarray"
    tokens: float
    bytes: float

    @property
    def name(self) -> str:
        return self.record.folder.name


def side(record: Record) -> Side:
    """What a record gives to a comparison: its packed scores, else those of its logs.

    Raises UserError when it states no score per seed or no text: a mean alone cannot be tested.
    """
    submission = _readable(record)
    if submission.data is None:
        return logged_side(record)
    if not submission.seed_results:
        raise UserError(
            f"{record.folder}: submission.json has no per-seed val_bpb; "
            "a mean alone cannot be compared, pack the record from its logs"
        )
    values = _nats_per_byte([row.val_bpb for row in submission.seed_results.values()])
    data = submission.data
    return Side(record, submission, values, data.val_tokens - 1, data.val_bytes)


def logged_side(record: Record) -> Side:
    """What a record's logs alone give to a comparison.

    Raises UserError where they do not say on what text, or with which scores.
    """
    submission = _readable(record)
    text = _scored_text(record)
    if text is None:
        raise UserError(
            f"{record.folder}: the logs do not say how large the validation text is, "
            "so nothing tells whether both texts are the same"
        )
    unclear = [name for name, log in record.chosen.items() if log.scores and not record.score(log)]
    if unclear:
        raise UserError(
            f"{record.folder / unclear[0]}: prints several scores that could be its result; "
            "nothing tells which one to compare"
        )
    scores = [score.val_bpb for score in record.final_scores().values()]
    if not scores:
        raise UserError(
            f"{record.folder}: expected a log with a final score, found none; "
            "a mean alone cannot be compared"
        )
    tokens, size = text
    submission = submission.model_copy(update={"track": record.track_name})
    return Side(record, submission, _nats_per_byte(scores), tokens, size)


def _readable(record: Record) -> Submission:
    if record.submission is None:
        raise UserError(record.problem)
    return record.submission


def _nats_per_byte(bits_per_byte: list[float]) -> "np.ndarray":
    import numpy as np

    return np.array([bits * LN2 for bits in bits_per_byte])


def _scored_text(record: Record) -> tuple[float, float] | None:
    """(tokens, bytes) of the validation text by the first log that tells.

    It states its own byte count, or is of a published export with that many tokens.
    """
    for log in record.chosen.values():
        tokens = log.integer("data.val_tokens")
        if tokens is None:
            continue
        size = log.integer("result.scored_bytes")
        if size is not None:
            return tokens, size
        for export in KNOWN_EXPORTS:
            if tokens in export.val_tokens:
                return tokens, export.bytes
    return None


def comparison_rules(a: Side, b: Side) -> Rules:
    """The rule set that both were made under.

    Raises UserError when the two were not scored on the same text under the same rules.
    """
    require_comparable(a, b)
    if abs(a.bytes / b.bytes - 1) > BYTES_TOLERANCE:
        raise UserError(
            f"{a.name} and {b.name}: scored on different texts: "
            f"{a.bytes:,.0f} and {b.bytes:,.0f} bytes"
        )
    return load_rules(b.submission.rules_version or CURRENT)


def compare_sides(a: Side, b: Side, rules: Rules) -> Comparison:
    """The tests, with the bar of the rule set at B's tokens per byte."""
    bar = rules.policy.improvement_nats * b.tokens / b.bytes
    return welch(a.values, b.values, rules.policy.p_value, bar)


def require_comparable(a: Side, b: Side) -> None:
    """Raises UserError when the papers say that the two are not on one scale.

    That is, not scored on the same corpus, under the same rules or in the same track.
    """
    pair = f"{a.name} and {b.name}"
    ours = a.submission
    theirs = b.submission
    if (ours.data is None) != (theirs.data is None):
        silent = a if ours.data is None else b
        raise UserError(
            f"{silent.record.folder}: its submission.json does not say which corpus it was scored "
            "on, the other one does; compare records of one kind"
        )
    if ours.data is not None and ours.data.version != theirs.data.version:
        corpora = [f"{data.corpus} {data.version[:12]}…" for data in (ours.data, theirs.data)]
        raise UserError(
            f"{pair}: scored on different corpora ({' and '.join(corpora)}), "
            "so their numbers are not on one scale"
        )
    if ours.rules_version != theirs.rules_version:
        raise UserError(
            f"{pair}: made under rule sets {ours.rules_version} and {theirs.rules_version}; "
            "audit both under one"
        )
    if ours.track != theirs.track:
        raise UserError(
            f"{pair}: tracks {ours.track} and {theirs.track}; "
            "budgets differ, so the comparison says nothing"
        )
