"""Gathers the findings of one test of the audit."""

import math

from eval.papers.audits.report import SEVERITY, Finding, TestResult
from eval.rules import Verdict

MAX_FINDINGS = 12  # a broken scorer fails everywhere; the first places are enough to see why


class Collector:
    """Gathers the findings of one test and turns them into its row."""

    def __init__(self, name: str, label: str = ""):
        self.name, self.label = name, label
        self.findings: list[Finding] = []
        self.dropped = 0
        self.figures: dict[str, float] = {}
        self.tolerance, self.tolerance_source = "", ""
        self.ran = 0
        self.skipped: list[str] = []

    def ran_check(self, count: int = 1) -> None:
        self.ran += count

    def skip(self, why: str) -> None:
        if why not in self.skipped:
            self.skipped.append(why)

    def figure(self, name: str, value: float, combine=max) -> None:
        """Keep a number; one that comes up again is combined (largest by default)."""
        value = float(value)
        if not math.isfinite(value):
            value = math.copysign(1e308, value)
        self.figures[name] = (
            value if name not in self.figures else combine(self.figures[name], value)
        )

    def add(self, verdict: Verdict, where: str, expected: str, found: str, rule: str) -> None:
        if len([f for f in self.findings if f.verdict == verdict]) >= MAX_FINDINGS:
            self.dropped += 1
            return
        where = f"{self.label}: {where}" if self.label else where
        self.findings.append(
            Finding(verdict=verdict, where=where, expected=expected, found=found, rule=rule)
        )

    def result(self, summary: str, seconds: float = 0.0) -> TestResult:
        ordered = sorted(self.findings, key=lambda f: -SEVERITY.index(f.verdict))
        if ordered:
            verdict, first = ordered[0].verdict, ordered[0]
            reason = f"{first.where}: expected {first.expected}, found {first.found}"
        elif self.ran:
            verdict, reason = "PASS", summary
        else:
            verdict, reason = "NOT RUN", "; ".join(self.skipped) or "not selected"
        if verdict != "NOT RUN" and self.skipped:
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
        )
