"""Gathers the findings of one test of the audit."""

import math
from collections.abc import Callable

from eval.papers.audits.report import REFUTED, SEVERITY, Finding, TestResult
from eval.rules import Verdict

MAX_FINDINGS = 12  # a broken scorer fails everywhere; the first places are enough to see why
LARGEST_FIGURE = 1e308  # stands for infinity, which JSON lacks


class Collector:
    """Gathers the findings of one test and turns them into its row.

    `label` stands before the place of each finding, where several seeds are audited."""

    def __init__(self, name: str, label: str = ""):
        self.name = name
        self.label = label
        self.findings: list[Finding] = []
        self.dropped = 0
        self.figures: dict[str, float] = {}
        self.tolerance = ""
        self.tolerance_source = ""
        self.ran = 0
        self.skipped: list[str] = []
        self.unfinished = ""

    def ran_check(self, count: int = 1) -> None:
        """Count checks: a test without any has not run."""
        self.ran += count

    def skip(self, why: str) -> None:
        """Note why a check was left out."""
        if why not in self.skipped:
            self.skipped.append(why)

    def leave(self, why: str) -> None:
        """Note that the test was not brought to its end: it refutes, or it says nothing."""
        self.unfinished = self.unfinished or why

    def figure(
        self, name: str, value: float, combine: Callable[[float, float], float] = max
    ) -> None:
        """Keep a number; one that comes up again is combined (largest by default)."""
        number = float(value)
        if not math.isfinite(number):
            number = math.copysign(LARGEST_FIGURE, number)
        if name in self.figures:
            number = combine(self.figures[name], number)
        self.figures[name] = number

    def add(self, verdict: Verdict, where: str, expected: str, found: str, rule: str) -> None:
        """Keep a finding, or count it where there are enough of its verdict."""
        if sum(finding.verdict == verdict for finding in self.findings) >= MAX_FINDINGS:
            self.dropped += 1
            return
        place = f"{self.label}: {where}" if self.label else where
        self.findings.append(
            Finding(verdict=verdict, where=place, expected=expected, found=found, rule=rule)
        )

    def result(self, summary: str, seconds: float = 0.0) -> TestResult:
        """The row of the report; `summary` is the reason where nothing was found."""
        ordered = sorted(self.findings, key=lambda f: -SEVERITY.index(f.verdict))
        worst = ordered[0] if ordered else None
        if self.unfinished and (worst is None or worst.verdict not in REFUTED):
            verdict = Verdict.NOT_RUN
            reason = self.unfinished
        elif worst is not None:
            verdict = worst.verdict
            reason = f"{worst.where}: expected {worst.expected}, found {worst.found}"
        elif self.ran:
            verdict = Verdict.PASS
            reason = summary
        else:
            verdict = Verdict.NOT_RUN
            reason = "; ".join(self.skipped) or "nothing here to test"
        if verdict != Verdict.NOT_RUN and self.skipped:
            reason += f" (left out: {'; '.join(self.skipped)})"
        return TestResult(
            name=self.name,
            verdict=verdict,
            reason=reason,
            figures=self.figures,
            tolerance=self.tolerance,
            tolerance_source=self.tolerance_source,
            findings=ordered,
            more_findings=self.dropped,
            seconds=round(seconds, 3),
            unfinished=self.unfinished,
        )
