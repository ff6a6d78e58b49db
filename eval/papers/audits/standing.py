"""What a record's audit is worth: whether it counts, what it says, and why in ten words.

The boards, the pages and `compare` read a record's audit from here.
"""

from dataclasses import dataclass
from functools import cached_property

from eval.papers.audits.reading import mismatch
from eval.papers.audits.report import AuditReport, TestResult
from eval.papers.submission.files import Files
from eval.papers.submission.schema import AUDIT_TEXT, Submission
from eval.rules import Verdict

ACCEPTED = "accepted"
POLICY = "policy"  # valid as a probability, but against a choice of the rule set
REJECTED = "rejected"
UNAUDITED = "unaudited"  # no audit, or none that counts
# Of an audit that counts. Any other verdict leaves the record unaudited.
STATUS = {
    Verdict.PASS: ACCEPTED,
    Verdict.WARN: ACCEPTED,
    Verdict.POLICY: POLICY,
    Verdict.INVALID: REJECTED,
}
REASON_WORDS = 10


@dataclass(frozen=True)
class Reason:
    """Why an audit does not say PASS: the test and its reason, or what keeps it from counting."""

    text: str
    brief: str
    test: str | None = None
    verdict: Verdict | None = None

    @property
    def anchor(self) -> str:
        """Where AUDIT.md tells it in full, as a link from the record's folder."""
        if self.test is None or self.verdict is None:
            return AUDIT_TEXT
        heading = f"{self.test}: {self.verdict}".lower().replace(":", "").replace(" ", "-")
        return f"{AUDIT_TEXT}#{heading}"


@dataclass(frozen=True)
class Standing:
    """A record's audit as others may rely on it.

    `audit` is None where there is none that can be read; `mismatch` says why it does not count.
    """

    audit: AuditReport | None
    mismatch: str | None = None

    @property
    def status(self) -> str:
        """`accepted`, `policy`, `rejected` or `unaudited`."""
        if self.audit is None or self.mismatch:
            return UNAUDITED
        return STATUS.get(self.audit.verdict, UNAUDITED)

    @property
    def label(self) -> str:
        """Verdict and level, or why there is none."""
        if self.audit is None:
            return "audit cannot be read" if self.mismatch else "not audited"
        if self.mismatch and self.audit.verdict != Verdict.INCOMPLETE:
            return "audit does not count"
        return f"{self.audit.verdict} ({self.audit.level})"

    @cached_property
    def reasons(self) -> list[Reason]:
        """The tests that are as bad as the verdict, or what keeps the audit from counting."""
        if self.mismatch:
            return [Reason(self.mismatch, first_words(self.mismatch))]
        if self.audit is None:
            return []
        verdict = self.audit.verdict
        if verdict in (Verdict.PASS, Verdict.NOT_RUN):
            return []
        return [reason_of(test) for test in self.audit.tests if test.verdict == verdict]


def standing(
    audit: AuditReport | None, problem: str | None, files: Files, submission: Submission | None
) -> Standing:
    """What the audit beside a record's files is worth.

    `problem` says why audit.json cannot be read; one that cannot be read does not count.
    """
    if audit is None or submission is None:
        return Standing(audit, problem)
    return Standing(audit, mismatch(audit, files, submission))


def reason_of(test: TestResult) -> Reason:
    """Why a test gave its verdict, in full and in few words."""
    weighty = [finding for finding in test.findings if finding.verdict == test.verdict]
    told = test.reason
    if weighty:
        told = f"expected {_headline(weighty[0].expected)}, found {_headline(weighty[0].found)}"
    text = f"{test.name}: {test.reason}"
    return Reason(text, first_words(f"{test.name}: {told}"), test.name, test.verdict)


def _headline(text: str) -> str:
    """The first statement of a finding: what follows a semicolon or stands in brackets explains."""
    return text.partition(";")[0].partition(" (")[0]


def first_words(text: str, most: int = REASON_WORDS) -> str:
    """At most that many words; a mark in place of what is left out."""
    words = text.split()
    return " ".join(words) if len(words) <= most else " ".join(words[:most]).rstrip(",;:") + " …"
