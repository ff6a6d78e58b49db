"""`python -m eval compare A B`: is record B better than record A, in nats per byte?

A one-sided Welch test on per-seed values (Welch 1947; scipy.stats). Nats per byte is
val_bpb × ln 2, the same scale for every tokenizer of a corpus. The output holds n, means, standard
deviations, the difference, degrees of freedom (Welch-Satterthwaite), t, p and a one-sided
confidence bound.

Then comes the contest's bar (0.005 nats per token, with B's tokens per byte): p of the null
hypothesis that B improves by no more than the bar, which has to be below 0.01, and the smallest
improvement that such a test detects. Values are those of submission.json for packed records, and
those of the logs for public ones. Significance says nothing about validity: audit both records
first.
"""

import argparse
from pathlib import Path

from eval.papers.checks.statistics import (
    LN2,
    Comparison,
    Side,
    compare_sides,
    comparison_rules,
    side,
)
from eval.papers.folder import open_record
from eval.papers.rendering.tables import aligned
from eval.rules import Rules


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="record folder that is to be beaten")
    parser.add_argument("b", type=Path, metavar="B", help="record folder of the challenger")


def run(args: argparse.Namespace) -> int:
    a = side(open_record(args.a))
    b = side(open_record(args.b))
    rules = comparison_rules(a, b)
    print(describe(a, b, compare_sides(a, b, rules), rules))
    return 0


def describe(a: Side, b: Side, result: Comparison, rules: Rules) -> str:
    """All figures of a comparison as text."""
    tokens_per_byte = b.tokens / b.bytes
    bar = rules.policy.improvement_nats
    level = rules.policy.p_value
    per_token = result.difference / tokens_per_byte
    lines = [
        aligned([_side_row("A", a), _side_row("B", b)], gap=2),
        f"B is better by {result.difference:+.6f} nats/byte ({result.difference / LN2:+.6f} bpb)",
        _test_line(result, level),
        f"contest bar: {bar:g} nats/token = {bar * tokens_per_byte:.6f} nats/byte on this corpus",
    ]
    if result.p_bar is not None:
        lines.append(f"improvement above the bar: p {result.p_bar:.3g}")
        lines.append(
            f"minimum detectable effect: {result.detectable:.6f} nats/byte "
            f"(above the bar at p < {level:g}, power 0.8, this spread)"
        )
    conclusion = _conclusion(result, per_token, rules)
    lines.append(f"B improves by {per_token:+.6f} nats/token: {conclusion}")
    return "\n".join(lines)


def _side_row(letter: str, record: Side) -> list[str]:
    values = record.values
    spread = f"{values.std(ddof=1):.6f}" if len(values) > 1 else "none (one seed)"
    return [
        f"{letter} {record.name}:",
        f"n {len(values)}",
        f"mean {values.mean():.6f}",
        f"sd {spread} nats/byte",
        f"(val_bpb {values.mean() / LN2:.6f})",
    ]


def _test_line(result: Comparison, level: float) -> str:
    if result.p is None:
        one_seed = result.bound is None
        why = "a side has one seed" if one_seed else "no spread between the seeds of either side"
        return f"no test: {why}; three seeds on each side are the practice"
    return (
        f"one-sided Welch: t {result.t:.3f}  df {result.df:.2f}  p {result.p:.3g}  "
        f"improvement above {result.bound:+.6f} nats/byte with confidence {1 - level:g}"
    )


def _conclusion(result: Comparison, per_token: float, rules: Rules) -> str:
    if per_token < rules.policy.improvement_nats:
        return "below the bar"
    if result.p_bar is None:
        return "above the bar, significance not tested"
    level = rules.policy.p_value
    if result.p_bar < level:
        return f"above the bar, p < {level:g}: met"
    return f"above the bar, p >= {level:g}: not met"
