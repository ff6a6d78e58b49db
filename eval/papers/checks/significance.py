"""The check of `--against`: is the improvement significant?"""

from dataclasses import replace

from eval.errors import UserError
from eval.papers.checks.report import Check, Evidence, cannot_tell, cite, fails, passes, policy
from eval.papers.checks.statistics import LN2, compare_sides, comparison_rules, logged_side
from eval.papers.folder import Record

NAME = "significance"
# The leaderboard's practice, stated in review (#1902): one-sided Welch, this level, no bar.
PRACTICE_LEVEL = 0.25


def check_significance(record: Record, base: Record) -> Check:
    """One-sided Welch test of the per-seed scores that the logs prove.

    The contest's own test: that the gain exceeds the bar of the rule set. POLICY where only the
    leaderboard's weaker practice is met.
    """
    try:
        a = logged_side(base)
        b = logged_side(record)
        rules = comparison_rules(a, b)
    except UserError as error:
        return cannot_tell(NAME, str(error))
    evidence = [*_scores_of(base), *_scores_of(record)]
    result = compare_sides(a, b, rules)
    per_token = result.difference * b.bytes / b.tokens
    gain = (
        f"delta {-result.difference / LN2:+.6f} bpb, gain {result.difference:+.6f} nats/byte, "
        f"{per_token:+.6f} nats/token over {base.folder.name}, "
        f"n {len(a.values)} and {len(b.values)}"
    )
    bar = rules.policy.improvement_nats
    level = rules.policy.p_value
    if result.p_bar is None:
        why = "one seed on a side or no spread, so no test is possible"
        return cannot_tell(NAME, f"{gain}; {why}", *evidence)
    test = (
        f"t {result.t:.3f}, df {result.df:.2f}, p {result.p:.3g}; "
        f"bar {bar:g} nats/token: p {result.p_bar:.3g}, wanted below {level:g}"
    )
    detail = f"{gain}; {test}; detectable {result.detectable:.6f} nats/byte"
    if result.p_bar < level:
        return passes(NAME, detail, *evidence)
    if result.p < PRACTICE_LEVEL:
        practice = f"the leaderboard's practice, p < {PRACTICE_LEVEL:g} without a bar, is met"
        return policy(NAME, f"{detail}; {practice}", *evidence)
    return fails(NAME, detail, *evidence)


def _scores_of(record: Record) -> list[Evidence]:
    """The lines of a record's final scores, with the folder's name before the file's."""
    scores = record.final_scores()
    lines = [cite(record.logs[name], score) for name, score in scores.items()]
    folder = record.folder.name
    return [replace(line, file=f"{folder}/{line.file}") for line in lines]
