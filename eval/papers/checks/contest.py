"""Whether one record beats another: the numbers of both sides, and whether they count."""

from dataclasses import dataclass
from enum import StrEnum

from eval.papers.audits.standing import REJECTED, UNAUDITED, Standing
from eval.papers.checks.statistics import Comparison, Side, compare_sides
from eval.rules import Rules


class Answer(StrEnum):
    """To the question whether record B is better than record A."""

    BETTER = "better"
    NOT_BETTER = "not better"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Contest:
    """Record B against record A: seeds, audits, tests, and the answer with its reason."""

    a: Side
    b: Side
    audit_a: Standing
    audit_b: Standing
    rules: Rules
    test: Comparison
    answer: Answer
    reason: str

    @property
    def tokens_per_byte(self) -> float:
        """Of B's text: nats per byte divided by it are nats per token."""
        return self.b.tokens / self.b.bytes

    @property
    def gain_per_token(self) -> float:
        """Of B over A, in nats."""
        return _per_token(self.test, self.b)

    @property
    def refuted(self) -> bool:
        """Whether an audit decided, so that no test of the numbers means anything."""
        return REJECTED in (self.audit_a.status, self.audit_b.status)

    @property
    def unaudited(self) -> list[str]:
        """Names of the sides whose numbers no audit covers."""
        sides = ((self.a, self.audit_a), (self.b, self.audit_b))
        return [side.name for side, audit in sides if audit.status == UNAUDITED]


def judge(a: Side, b: Side, rules: Rules) -> Contest:
    """B against A under a rule set."""
    audit_a = a.record.standing
    audit_b = b.record.standing
    test = compare_sides(a, b, rules)
    gain = _per_token(test, b)
    answer, reason = _of_audits(audit_a, audit_b) or _of_numbers(test, gain, rules)
    return Contest(a, b, audit_a, audit_b, rules, test, answer, reason)


def _per_token(test: Comparison, b: Side) -> float:
    """The difference in nats per token of B's text."""
    return test.difference * b.bytes / b.tokens


def _of_audits(audit_a: Standing, audit_b: Standing) -> tuple[Answer, str] | None:
    """The answer where an audit refutes a side; None where the numbers decide."""
    if audit_b.status == REJECTED:
        return Answer.NOT_BETTER, f"B's audit says {audit_b.label}: its score is no score"
    if audit_a.status == REJECTED:
        reason = f"A's audit says {audit_a.label}: its score is nothing to compare with"
        return Answer.CANNOT_TELL, reason
    return None


def _of_numbers(test: Comparison, gain: float, rules: Rules) -> tuple[Answer, str]:
    """The contest's rule: more than the bar (`gain` in nats per token), significantly so."""
    if gain < rules.policy.improvement_nats:
        return Answer.NOT_BETTER, "below the bar"
    if test.p_bar is None:
        return Answer.CANNOT_TELL, "above the bar, significance not tested"
    level = rules.policy.p_value
    if test.p_bar < level:
        return Answer.BETTER, f"above the bar, p < {level:g}: met"
    return Answer.CANNOT_TELL, f"above the bar, p >= {level:g}: not met"
