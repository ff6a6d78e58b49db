"""What a check says, with the lines that prove it."""

import re
from pathlib import Path

from pydantic import Field

from eval.papers.folder import Record
from eval.papers.logs.log import Fact, Log, LoggedScore
from eval.papers.submission.schema import SUBMISSION_FILE, Strict
from eval.rules import Verdict

CHECK_VERDICTS = (Verdict.PASS, Verdict.FAIL, Verdict.CANNOT_TELL)


class Evidence(Strict):
    """A line that proves a verdict; `line` is 1-based, None for a whole file."""

    file: str
    line: int | None = None
    text: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.text}" if self.text else place


class Check(Strict):
    name: str
    verdict: Verdict
    detail: str
    evidence: list[Evidence] = Field(default_factory=list)


class Report(Strict):
    """All checks of one folder; `verdict` is the worst of them."""

    folder: str
    name: str | None
    verdict: Verdict
    checks: list[Check]


def format_report(report: Report) -> str:
    counts = {
        verdict: sum(c.verdict is verdict for c in report.checks) for verdict in CHECK_VERDICTS
    }
    lines = [report.folder, f"  {report.name or 'unreadable record'}"]
    for check in report.checks:
        lines.append(f"  {check.verdict:<12}{check.name:<14}{check.detail}")
        lines += [f"{'':<28}| {evidence}" for evidence in check.evidence]
    tally = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return "\n".join([*lines, f"  {tally}: {report.verdict}"])


def passes(name: str, detail: str, *evidence: Evidence) -> Check:
    return Check(name=name, verdict=Verdict.PASS, detail=detail, evidence=list(evidence))


def fails(name: str, detail: str, *evidence: Evidence) -> Check:
    return Check(name=name, verdict=Verdict.FAIL, detail=detail, evidence=list(evidence))


def cannot_tell(name: str, detail: str, *evidence: Evidence) -> Check:
    return Check(name=name, verdict=Verdict.CANNOT_TELL, detail=detail, evidence=list(evidence))


def shorten(text: str, width: int = 150) -> str:
    text = text.strip().rstrip(",")
    return text if len(text) <= width else text[: width - 1] + "…"


def cite(log: Log, source: Fact | LoggedScore) -> Evidence:
    return Evidence(file=log.path.name, line=source.line, text=shorten(source.text))


def decimals(value: float) -> int:
    """Digits after the point that a JSON number shows; trailing zeros are lost in JSON, so at least 4 are taken as meant."""
    return max(4, shown_decimals(value))


def shown_decimals(value: float) -> int:
    return len(f"{value:.15g}".partition(".")[2])


def agrees(stated: float, computed: float, least: int | None = None) -> bool:
    """Equal to the last digit stated, correctly rounded (`least` overrides how many digits count)."""
    digits = decimals(stated) if least is None else least
    return abs(stated - computed) <= 0.5 * 10.0**-digits + 1e-12


def cite_json(path: Path, key: str) -> Evidence:
    for i, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if f'"{key}"' in text:
            return Evidence(file=path.name, line=i, text=shorten(text))
    return Evidence(file=path.name)


def say(record: Record, key: str, seed: str | None = None) -> Evidence:
    """The line of submission.json that states a key, inside one seed's block where given."""
    begin = 0 if seed is None else _line_of_seed(record.json_lines, seed)
    for i, text in enumerate(record.json_lines[begin:], begin):
        if f'"{key}"' in text:
            return Evidence(file=SUBMISSION_FILE, line=i + 1, text=shorten(text))
    return Evidence(file=SUBMISSION_FILE)


def _line_of_seed(json_lines: list[str], seed: str) -> int:
    opening = re.compile(rf'\s*"\s*(?:seed[_ -]?)?{re.escape(seed)}\s*"\s*:')
    for i, text in enumerate(json_lines):
        if opening.match(text):
            return i
    return 0
