"""What a check says, with the lines that prove it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from eval.papers.folder import Record
from eval.papers.logs.log import Fact, Log, LoggedScore, Step
from eval.papers.logs.values import decimals
from eval.papers.submission.schema import AUDIT_FILE
from eval.rules import Verdict

LONGEST_EVIDENCE = 150  # characters of a line that a report cites


@dataclass(frozen=True)
class Evidence:
    """A line that proves a verdict; `line` is 1-based, None for a whole file."""

    file: str
    line: int | None = None
    text: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.text}" if self.text else place


class Severity(StrEnum):
    """What a check's verdict means to a reviewer. Only blocking lines decide the report's."""

    BLOCKING = "blocking"  # the number is wrong, unproven or over a limit
    EXPLAIN = "to explain"  # a reviewer must ask the author
    FORMAT = "format"  # names, JSON keys, dates, large files
    NOTE = "note"  # what no public record can show; lowers nothing


# The default severity of each check, by its name. A call may say otherwise.
SEVERITIES = {
    "files": Severity.BLOCKING,
    "uncounted": Severity.EXPLAIN,
    "modules": Severity.EXPLAIN,
    "code_packed": Severity.EXPLAIN,
    "log_size": Severity.FORMAT,
    "companions": Severity.FORMAT,
    "json": Severity.FORMAT,
    "script_name": Severity.FORMAT,
    "date": Severity.FORMAT,
    "folder": Severity.FORMAT,
    "track": Severity.FORMAT,
    "log": Severity.BLOCKING,
    "seeds": Severity.BLOCKING,
    "log_by_hand": Severity.BLOCKING,
    "enough_seeds": Severity.EXPLAIN,
    "headline": Severity.BLOCKING,
    "val_loss": Severity.BLOCKING,
    "seed_results": Severity.EXPLAIN,
    "derived": Severity.BLOCKING,
    "readme": Severity.EXPLAIN,
    "arithmetic": Severity.BLOCKING,
    "coverage": Severity.BLOCKING,
    "overlap": Severity.BLOCKING,
    "aggregates": Severity.EXPLAIN,
    "code_bytes": Severity.EXPLAIN,
    "compiles": Severity.BLOCKING,
    "wrapper": Severity.BLOCKING,
    "source": Severity.BLOCKING,
    "embedded": Severity.BLOCKING,
    "bytes_total": Severity.EXPLAIN,
    "cap": Severity.BLOCKING,
    "artifacts": Severity.BLOCKING,
    "train_time": Severity.BLOCKING,
    "eval_time": Severity.BLOCKING,
    "comparable": Severity.EXPLAIN,
    "world_size": Severity.BLOCKING,
    "parameters": Severity.EXPLAIN,
    "implied_bytes": Severity.BLOCKING,
    "audit": Severity.BLOCKING,
    "significance": Severity.BLOCKING,
}


@dataclass(frozen=True)
class Check:
    """One answered question. `severity` says what a verdict other than PASS means."""

    name: str
    verdict: Verdict
    severity: Severity
    detail: str
    evidence: list[Evidence] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """All checks of one folder; `verdict` is what its blocking lines say.

    `name` and `val_bpb` are as submission.json states them. `problem` says why a folder cannot be
    read at all; its verdict is then CANNOT-TELL. `commit` is the commit that it was read from.
    """

    folder: str
    name: str | None
    verdict: Verdict
    checks: list[Check]
    val_bpb: float | None = None
    problem: str | None = None
    commit: str | None = None


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """FAIL if a blocking check fails, else CANNOT-TELL if one cannot tell, else PASS."""
    found = {check.verdict for check in checks if check.severity is Severity.BLOCKING}
    for verdict in (Verdict.FAIL, Verdict.CANNOT_TELL):
        if verdict in found:
            return verdict
    return Verdict.PASS


# --- The four answers ---


def passes(name: str, detail: str, *evidence: Evidence) -> Check:
    return _answer(Verdict.PASS, name, detail, evidence)


def fails(name: str, detail: str, *evidence: Evidence, severity: Severity | None = None) -> Check:
    """The evidence proves that something is wrong."""
    return _answer(Verdict.FAIL, name, detail, evidence, severity)


def cannot_tell(
    name: str, detail: str, *evidence: Evidence, severity: Severity | None = None
) -> Check:
    """The folder does not show whether something is right."""
    return _answer(Verdict.CANNOT_TELL, name, detail, evidence, severity)


def policy(
    name: str, detail: str, *evidence: Evidence, severity: Severity = Severity.EXPLAIN
) -> Check:
    """The facts are known; whether they are allowed is a rule that people make."""
    return _answer(Verdict.POLICY, name, detail, evidence, severity)


def _answer(
    verdict: Verdict,
    name: str,
    detail: str,
    evidence: Sequence[Evidence],
    severity: Severity | None = None,
) -> Check:
    return Check(
        name=name,
        verdict=verdict,
        severity=severity or SEVERITIES[name],
        detail=detail,
        evidence=list(evidence),
    )


# --- Evidence ---


def shorten(text: str, width: int = LONGEST_EVIDENCE) -> str:
    """At most `width` characters of a line, without the comma at its end."""
    line = text.strip().rstrip(",")
    return line if len(line) <= width else line[: width - 1] + "…"


def cite(log: Log, source: Fact | LoggedScore | Step) -> Evidence:
    """The line of a log that states something."""
    return Evidence(file=log.file, line=source.line, text=shorten(source.text))


def cite_scores(record: Record, scores: dict[str, LoggedScore]) -> list[Evidence]:
    """The lines of scores that are kept by the names of their logs."""
    return [cite(record.logs[name], score) for name, score in scores.items()]


def agrees(stated: float, computed: float, digits: int | None = None) -> bool:
    """Whether a stated value is a computed one, correctly rounded to the last digit stated.

    `digits` says how many decimals count instead.
    """
    shown = decimals(stated) if digits is None else digits
    return abs(stated - computed) <= 0.5 * 10.0**-shown + 1e-12


def cite_audit(record: Record, key: str) -> Evidence:
    """The first line of audit.json that states a key."""
    return _cite_key(AUDIT_FILE, record.audit_lines, key)


def say(record: Record, key: str, seed: str | None = None) -> Evidence:
    """The line of submission.json that states a key, inside one seed's block where given."""
    begin = 0 if seed is None else _line_of_seed(record.json_lines, seed)
    return _cite_key(record.json_file, record.json_lines, key, begin)


def _cite_key(file: str, lines: Sequence[str], key: str, begin: int = 0) -> Evidence:
    for i in range(begin, len(lines)):
        if f'"{key}"' in lines[i]:
            return Evidence(file=file, line=i + 1, text=shorten(lines[i]))
    return Evidence(file=file)


def _line_of_seed(json_lines: list[str], seed: str) -> int:
    opening = re.compile(rf'\s*"\s*(?:seed[_ -]?)?{re.escape(seed)}\s*"\s*:')
    for i, text in enumerate(json_lines):
        if opening.match(text):
            return i
    return 0
