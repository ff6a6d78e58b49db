"""`python -m eval compare A B`: is record B better than record A, and by how much, in nats per byte?

One-sided Welch test on per-seed values (Welch 1947; scipy.stats). Nats per byte is val_bpb × ln 2, the same scale for every tokenizer of a
corpus. Printed: n, means, standard deviations, difference, degrees of freedom (Welch-Satterthwaite), t, p, a one-sided confidence bound, and
the contest's bar (0.005 nats per token, with B's tokens per byte): p of the null hypothesis that B improves by no more than the bar, which has to
be below 0.01, and the smallest improvement that such a test detects. Values are those of submission.json for packed records, those of the
logs for public ones. Significance says nothing about validity: audit both records first."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from eval.bytes import BYTES_TOLERANCE
from eval.errors import UserError
from eval.rules import CURRENT, Rules, load_rules
from eval.schema import Submission, load_submission

LN2 = math.log(2)


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "compare", help="is record B better than record A", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("a", type=Path, metavar="A", help="record folder that is to be beaten")
    parser.add_argument("b", type=Path, metavar="B", help="record folder of the challenger")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Comparison:
    """Values in nats per byte, lower is better. `difference` = mean A - mean B, positive when B is better; `bound` is the largest improvement
    that the data refute at level p_value, seen from below: the true one exceeds it with confidence 1 - p_value. `p` is of the null hypothesis
    of no improvement, `p_bar` of an improvement by no more than the bar; `detectable` is the improvement that the test against the bar finds with
    probability 0.8 at this size and spread. None where a side has one seed."""

    a: np.ndarray
    b: np.ndarray
    difference: float
    df: float | None
    t: float | None
    p: float | None
    p_bar: float | None
    bound: float | None
    detectable: float | None


def welch(a: np.ndarray, b: np.ndarray, level: float, bar: float = 0.0) -> Comparison:
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
    low, high = 0.0, critical + 50.0
    for _ in range(80):
        middle = (low + high) / 2
        if stats.nct.sf(critical, df, middle) < power:
            low = middle
        else:
            high = middle
    return high


def run(args: argparse.Namespace) -> int:
    a, b = (side(folder) for folder in (args.a, args.b))
    rules = comparison_rules(a, b)
    result = compare_sides(a, b, rules)
    print(describe(args.a.name, args.b.name, result, b.tokens / b.bytes, rules))
    return 0


@dataclass(frozen=True)
class Side:
    """One record to compare: nats per byte by seed, float64 [n], and the size of the text that they are of."""

    folder: Path
    submission: Submission
    values: np.ndarray
    tokens: float
    bytes: float


def side(folder: Path) -> Side:
    """What a record folder gives to a comparison. Raises UserError when it states no score per seed or no text: a mean alone cannot be tested."""
    submission = load_submission(folder)
    if submission.data is None:
        from eval import check  # here, as that module uses this one

        return check.logged_side(check.load_record(folder))
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


def describe(a: str, b: str, c: Comparison, tokens_per_byte: float, rules: Rules) -> str:
    lines = []
    for letter, name, values in (("A", a, c.a), ("B", b, c.b)):
        sd = f"{values.std(ddof=1):.6f}" if len(values) > 1 else "none (one seed)"
        lines.append(
            f"{letter} {name}: n {len(values)}  mean {values.mean():.6f}  sd {sd} nats/byte  (val_bpb {values.mean() / LN2:.6f})"
        )
    lines.append(f"B is better by {c.difference:+.6f} nats/byte ({c.difference / LN2:+.6f} bpb)")
    level, bar = rules.policy.p_value, rules.policy.improvement_nats
    if c.p is None:
        why = (
            "a side has one seed"
            if c.bound is None
            else "no spread between the seeds of either side"
        )
        lines.append(f"no test: {why}; three seeds on each side are the practice")
    else:
        lines.append(
            f"one-sided Welch: t {c.t:.3f}  df {c.df:.2f}  p {c.p:.3g}  improvement above {c.bound:+.6f} nats/byte with confidence {1 - level:g}"
        )
    per_token = c.difference / tokens_per_byte
    lines.append(
        f"contest bar: {bar:g} nats/token = {bar * tokens_per_byte:.6f} nats/byte on this corpus"
    )
    if c.p_bar is not None:
        lines.append(f"improvement above the bar: p {c.p_bar:.3g}")
        lines.append(
            f"minimum detectable effect: {c.detectable:.6f} nats/byte (above the bar at p < {level:g}, power 0.8, this spread)"
        )
    lines.append(f"B improves by {per_token:+.6f} nats/token: {_bar(c, per_token, bar, level)}")
    return "\n".join(lines)


def _bar(c: Comparison, per_token: float, bar: float, level: float) -> str:
    if per_token < bar:
        return "below the bar"
    if c.p_bar is None:
        return "above the bar, significance not tested"
    met = c.p_bar < level
    return f"above the bar, p {'<' if met else '>='} {level:g}: {'met' if met else 'not met'}"
