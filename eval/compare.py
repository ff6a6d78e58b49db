"""`python -m eval compare A B`: is record B better than record A, and by how much, in nats per byte?

One-sided Welch test on per-seed values (Welch 1947; scipy.stats). Nats per byte is val_bpb × ln 2, the same scale for every tokenizer of a
corpus. Printed: n, means, standard deviations, difference, degrees of freedom (Welch-Satterthwaite), t, p, a one-sided confidence bound, the
minimum detectable effect, and the contest's bar (0.005 nats per token at p < 0.01, with this corpus's tokens per byte). Significance says
nothing about validity: audit both records first."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from eval.errors import UserError
from eval.rules import Rules, load_rules
from eval.schema import Submission, load_submission

LN2 = math.log(2)


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("compare", help="is record B better than record A", description=__doc__, allow_abbrev=False)
    parser.add_argument("a", type=Path, metavar="A", help="record folder that is to be beaten")
    parser.add_argument("b", type=Path, metavar="B", help="record folder of the challenger")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Comparison:
    """Values in nats per byte, lower is better. `difference` = mean A - mean B, positive when B is better; `bound` is the largest improvement
    that the data refute at level p_value, seen from below: the true one exceeds it with confidence 1 - p_value. `detectable` is the
    improvement that a test of this size and spread finds with probability 0.8. None where a side has one seed."""

    a: np.ndarray
    b: np.ndarray
    difference: float
    df: float | None
    t: float | None
    p: float | None
    bound: float | None
    detectable: float | None


def welch(a: np.ndarray, b: np.ndarray, level: float) -> Comparison:
    """One-sided Welch test of mean(b) < mean(a)."""
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Comparison(a, b, difference, None, None, None, None, None)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = math.sqrt(va + vb)
    if error == 0:  # seeds that agree to the last digit: no spread to test against
        return Comparison(a, b, difference, None, None, None, difference, 0.0)
    result = stats.ttest_ind(a, b, equal_var=False, alternative="greater")
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    critical = float(stats.t.ppf(1 - level, df))
    return Comparison(
        a, b, difference, float(df), float(result.statistic), float(result.pvalue), difference - critical * error, _detectable(critical, df) * error
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
    sides = [load_submission(folder) for folder in (args.a, args.b)]
    tokens_per_byte = comparable(args.a, args.b, *sides)
    rules = load_rules(sides[1].rules_version) if sides[1].rules_version else load_rules()
    values = [nats_per_byte(folder, side) for folder, side in zip((args.a, args.b), sides, strict=True)]
    result = welch(*values, rules.policy.p_value)
    print(describe(args.a.name, args.b.name, result, tokens_per_byte, rules))
    return 0


def nats_per_byte(folder: Path, submission: Submission) -> np.ndarray:
    """Per-seed values, float64 [n]. Raises UserError when the record states none: a mean alone cannot be tested."""
    values = [r.val_bpb * LN2 for r in submission.seed_results.values()]
    if not values:
        raise UserError(f"{folder}: submission.json has no per-seed val_bpb; a mean alone cannot be compared, pack the record from its logs")
    return np.array(values)


def comparable(a_folder: Path, b_folder: Path, a: Submission, b: Submission) -> float | None:
    """Tokens per byte of the common corpus, None where no record states it. Raises UserError when the two were not scored on the same text under
    the same rules."""
    if a.data is not None and b.data is not None and a.data.version != b.data.version:
        raise UserError(
            f"{a_folder.name} and {b_folder.name}: scored on different corpora ({a.data.corpus} {a.data.version[:12]}… and {b.data.corpus} "
            f"{b.data.version[:12]}…), so their numbers are not on one scale"
        )
    if (a.data is None) != (b.data is None):
        silent = a_folder if a.data is None else b_folder
        raise UserError(f"{silent}: its submission.json does not say which corpus it was scored on, the other one does; compare records of one kind")
    if a.rules_version != b.rules_version:
        raise UserError(f"{a_folder.name} and {b_folder.name}: made under rule sets {a.rules_version} and {b.rules_version}; audit both under one")
    if a.track != b.track:
        raise UserError(f"{a_folder.name} and {b_folder.name}: tracks {a.track} and {b.track}; budgets differ, so the comparison says nothing")
    return (b.data.val_tokens - 1) / b.data.val_bytes if b.data else None


def describe(a: str, b: str, c: Comparison, tokens_per_byte: float | None, rules: Rules) -> str:
    lines = []
    for letter, name, values in (("A", a, c.a), ("B", b, c.b)):
        sd = f"{values.std(ddof=1):.6f}" if len(values) > 1 else "none (one seed)"
        lines.append(f"{letter} {name}: n {len(values)}  mean {values.mean():.6f}  sd {sd} nats/byte  (val_bpb {values.mean() / LN2:.6f})")
    lines.append(f"B is better by {c.difference:+.6f} nats/byte ({c.difference / LN2:+.6f} bpb)")
    level, bar = rules.policy.p_value, rules.policy.improvement_nats
    if c.p is None:
        why = "a side has one seed" if c.bound is None else "no spread between the seeds of either side"
        lines.append(f"no test: {why}; three seeds on each side are the practice")
    else:
        lines.append(f"one-sided Welch: t {c.t:.3f}  df {c.df:.2f}  p {c.p:.3g}  improvement above {c.bound:+.6f} nats/byte with confidence {1 - level:g}")
        lines.append(f"minimum detectable effect: {c.detectable:.6f} nats/byte (p < {level:g}, power 0.8, this spread)")
    if tokens_per_byte is not None:
        per_token = c.difference / tokens_per_byte
        lines.append(f"contest bar: {bar:g} nats/token = {bar * tokens_per_byte:.6f} nats/byte on this corpus")
        lines.append(f"B improves by {per_token:+.6f} nats/token: {_bar(c, per_token, bar, level)}")
    return "\n".join(lines)


def _bar(c: Comparison, per_token: float, bar: float, level: float) -> str:
    if per_token < bar:
        return "below the bar"
    if c.p is None:
        return "above the bar, significance not tested"
    return f"above the bar, p {'<' if c.p < level else '>='} {level:g}: {'met' if c.p < level else 'not met'}"
