"""The check of `--against`: is the improvement significant?"""

from eval.errors import UserError
from eval.papers.checks.report import Check, cannot_tell, cite, fails, passes
from eval.papers.checks.statistics import compare_sides, comparison_rules, logged_side
from eval.papers.folder import Record


def check_significance(record: Record, base: Record) -> Check:
    """One-sided Welch test, in nats per byte, of the per-seed scores that the logs prove, against the bar of the rule set."""
    name = "significance"
    try:
        a, b = (logged_side(r) for r in (base, record))
        rules = comparison_rules(a, b)
    except UserError as error:
        return cannot_tell(name, str(error))
    lines = [
        (r, cite(log, log.final))
        for r in (base, record)
        for log in r.by_seed.values()
        if log.final is not None
    ]
    evidence = [
        line.model_copy(update={"file": f"{r.folder.name}/{line.file}"}) for r, line in lines
    ]
    result = compare_sides(a, b, rules)
    per_token = result.difference * b.bytes / b.tokens
    gain = f"{result.difference:+.6f} nats/byte, {per_token:+.6f} nats/token over {base.folder.name}, n {len(a.values)} and {len(b.values)}"
    bar, level = rules.policy.improvement_nats, rules.policy.p_value
    if result.p_bar is None:
        return cannot_tell(
            name, f"{gain}; one seed on a side or no spread, so no test is possible", *evidence
        )
    test = f"t {result.t:.3f}, df {result.df:.2f}, p {result.p:.3g}; bar {bar:g} nats/token: p {result.p_bar:.3g}, wanted below {level:g}"
    detail = f"{gain}; {test}; detectable {result.detectable:.6f} nats/byte"
    return (passes if result.p_bar < level else fails)(name, detail, *evidence)
