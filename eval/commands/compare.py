"""`python -m eval compare A B`: is record B better than record A, and by how much, in nats per byte?

One-sided Welch test on per-seed values (Welch 1947; scipy.stats). Nats per byte is val_bpb × ln 2, the same scale for every tokenizer of a
corpus. Printed: n, means, standard deviations, difference, degrees of freedom (Welch-Satterthwaite), t, p, a one-sided confidence bound, and
the contest's bar (0.005 nats per token, with B's tokens per byte): p of the null hypothesis that B improves by no more than the bar, which has to
be below 0.01, and the smallest improvement that such a test detects. Values are those of submission.json for packed records, those of the
logs for public ones. Significance says nothing about validity: audit both records first.
"""

import argparse
from pathlib import Path

from eval.papers.checks.statistics import LN2, Comparison, compare_sides, comparison_rules, side
from eval.rules import Rules


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="record folder that is to be beaten")
    parser.add_argument("b", type=Path, metavar="B", help="record folder of the challenger")


def run(args: argparse.Namespace) -> int:
    a, b = (side(folder) for folder in (args.a, args.b))
    rules = comparison_rules(a, b)
    result = compare_sides(a, b, rules)
    print(describe(args.a.name, args.b.name, result, b.tokens / b.bytes, rules))
    return 0


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
