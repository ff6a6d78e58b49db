"""`python -m eval compare A B`: is record B better than record A, in nats per byte?

A one-sided Welch test on per-seed values (Welch 1947; scipy.stats). Nats per byte is
val_bpb × ln 2, the same scale for every tokenizer of a corpus. The output holds n, means, standard
deviations, the state of both audits, the difference, degrees of freedom (Welch-Satterthwaite), t, p
and a one-sided confidence bound.

Then comes the contest's bar (0.005 nats per token, with B's tokens per byte): p of the null
hypothesis that B improves by no more than the bar, which has to be below 0.01, and the smallest
improvement that such a test detects. Values are those of submission.json for packed records, and
those of the logs for public ones.

A record whose audit says INVALID is never better, and nothing is better or worse than it. The
numbers of a record without an audit are its author's word. Exit code 0 where B is better by that
rule, 1 where it is not, 3 where nobody can tell, 2 for bad input.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from eval.papers.audits.standing import Standing
from eval.papers.checks.contest import Answer, Contest, judge
from eval.papers.checks.statistics import LN2, Comparison, Side, comparison_rules, side
from eval.papers.folder import open_record
from eval.papers.rendering.tables import aligned

EXIT_CODES = {Answer.BETTER: 0, Answer.NOT_BETTER: 1, Answer.CANNOT_TELL: 3}
JSON_SCHEMA = 1  # changes when a key changes its meaning


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="record folder that is to be beaten")
    parser.add_argument("b", type=Path, metavar="B", help="record folder of the challenger")
    parser.add_argument("--json", action="store_true", help="print the figures as a JSON object")


def run(args: argparse.Namespace) -> int:
    a = side(open_record(args.a))
    b = side(open_record(args.b))
    contest = judge(a, b, comparison_rules(a, b))
    print(as_json(contest) if args.json else describe(contest))
    return EXIT_CODES[contest.answer]


# --- Text ---


def describe(contest: Contest) -> str:
    """All figures of a comparison as text."""
    test = contest.test
    bar = contest.rules.policy.improvement_nats
    level = contest.rules.policy.p_value
    bar_per_byte = bar * contest.tokens_per_byte
    sides = [
        _side_row("A", contest.a, contest.audit_a),
        _side_row("B", contest.b, contest.audit_b),
    ]
    lines = [
        aligned(sides, gap=2),
        f"B scores {_lower_or_higher(test)}",
        _test_line(test, level),
        f"contest bar: {bar:g} nats/token = {bar_per_byte:.6f} nats/byte on this corpus",
    ]
    if test.p_bar is not None:
        lines.append(f"improvement above the bar: p {test.p_bar:.3g}")
        lines.append(
            f"minimum detectable effect: {test.detectable:.6f} nats/byte "
            f"(above the bar at p < {level:g}, power 0.8, this spread)"
        )
    lines.append(f"gain of B: {contest.gain_per_token:+.6f} nats/token")
    if contest.unaudited:
        names = " and ".join(contest.unaudited)
        lines.append(f"no audit that counts: {names}; audit before you believe the number")
    lines.append(f"verdict: {contest.answer}; {contest.reason}")
    return "\n".join(lines)


def _side_row(letter: str, record: Side, audit: Standing) -> list[str]:
    values = record.values
    spread = f"{values.std(ddof=1):.6f}" if len(values) > 1 else "none (one seed)"
    return [
        f"{letter} {record.name}:",
        f"n {len(values)}",
        f"mean {values.mean():.6f}",
        f"sd {spread} nats/byte",
        f"(val_bpb {values.mean() / LN2:.6f})",
        f"audit: {audit.label}",
    ]


def _lower_or_higher(test: Comparison) -> str:
    """What the numbers say; whether they count is the verdict's matter."""
    word = "higher" if test.difference < 0 else "lower"
    size = abs(test.difference)
    return f"{word} by {size:.6f} nats/byte ({size / LN2:.6f} bpb)"


def _test_line(test: Comparison, level: float) -> str:
    if test.p is None:
        one_seed = test.bound is None
        why = "a side has one seed" if one_seed else "no spread between the seeds of either side"
        return f"no test: {why}; three seeds on each side are the practice"
    return (
        f"one-sided Welch: t {test.t:.3f}  df {test.df:.2f}  p {test.p:.3g}  "
        f"improvement above {test.bound:+.6f} nats/byte with confidence {1 - level:g}"
    )


# --- JSON ---


def as_json(contest: Contest) -> str:
    """One object; losses in nats per byte unless the key says otherwise, null for no test."""
    test = contest.test
    policy = contest.rules.policy
    answer = {
        "schema": JSON_SCHEMA,
        "a": _side_object(contest.a, contest.audit_a),
        "b": _side_object(contest.b, contest.audit_b),
        "difference": test.difference,
        "difference_bpb": test.difference / LN2,
        "difference_nats_per_token": contest.gain_per_token,
        "t": test.t,
        "df": test.df,
        "p": test.p,
        "p_bar": test.p_bar,
        "bound": test.bound,
        "detectable": test.detectable,
        "bar_nats_per_token": policy.improvement_nats,
        "level": policy.p_value,
        "rules": contest.b.submission.rules_version,
        "verdict": contest.answer,
        "reason": contest.reason,
    }
    return json.dumps(answer, indent=2, ensure_ascii=False)


def _side_object(record: Side, audit: Standing) -> dict[str, Any]:
    values = record.values
    return {
        "folder": str(record.record.folder),
        "name": record.submission.name,
        "seeds": len(values),
        "values": values.tolist(),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "val_bpb": float(values.mean() / LN2),
        "audit": audit.status,
        "audit_label": audit.label,
        "audit_reasons": [reason.text for reason in audit.reasons],
    }
