"""Shows reports: text for a terminal, one row for each of many folders, JSON, Markdown.

What a report quotes was written by strangers. Text escapes what a terminal would obey; Markdown
puts it into code, where nobody is mentioned, nothing is linked and no HTML is obeyed.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from eval.papers.checks.report import Check, Evidence, Report, Severity
from eval.papers.rendering.tables import printable
from eval.rules import Verdict

SCHEMA = 2  # of the JSON; 1 had neither severities nor this number
COLUMN_WIDTHS = (11, 13)  # characters: of verdict and name, so that two reports look alike
LABEL_WIDTH = 8  # of the summary's labels
FEW_LINES = 4  # of evidence that a report shows of each answer unless all is wanted
LONGEST_COMMENT = 60_000  # characters; GitHub takes 65,536
MOST_LISTED = 100  # folders in a comment's list
LONGEST_LIST = 20_000  # characters of it
VERDICT_ORDER = (Verdict.FAIL, Verdict.CANNOT_TELL, Verdict.POLICY, Verdict.PASS)
SEVERITY_ORDER = tuple(Severity)
SUMMARY = {
    "score": ("headline",),
    "bytes": ("cap", "bytes_total"),
    "time": ("train_time", "eval_time"),
}
HEADINGS = {
    Severity.BLOCKING: "blocking: the number is wrong, unproven or over a limit",
    Severity.EXPLAIN: "to explain: a reviewer must ask",
    Severity.FORMAT: "format",
    Severity.NOTE: "what no public record shows",
}


# --- What is said first ---


def tally(report: Report) -> str:
    """How many checks ended on each verdict."""
    verdicts = [check.verdict for check in report.checks]
    counts = {verdict: verdicts.count(verdict) for verdict in reversed(VERDICT_ORDER)}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def summary(report: Report) -> dict[str, str]:
    """The five lines that begin a report, by their labels."""
    lines = {
        "record": f"{report.folder}: {report.name or 'without a name'}",
        "verdict": f"{report.verdict}; {_reasons(report)}",
    }
    for label, names in SUMMARY.items():
        found = [check for check in report.checks if check.name in names]
        lines[label] = _worst(found)
    return lines


def _worst(checks: list[Check]) -> str:
    """The gravest answer of some, those of one verdict together."""
    if not checks:
        return "nothing in the folder tells"
    gravest = min(checks, key=_gravity)
    same = [f"{c.name} {c.detail}" for c in checks if c.verdict is gravest.verdict]
    return f"{gravest.verdict}: {'; '.join(same)}"


def _reasons(report: Report) -> str:
    """`blocking: headline; open: cap; to explain: readme`, by the names of the checks."""
    if report.problem:
        return report.problem
    urgent = [check for check in report.checks if _is_urgent(check)]
    blocking = [check for check in urgent if check.severity is Severity.BLOCKING]
    kinds = {
        "blocking": [check for check in blocking if check.verdict is not Verdict.CANNOT_TELL],
        "open": [check for check in blocking if check.verdict is Verdict.CANNOT_TELL],
        "to explain": [check for check in urgent if check.severity is Severity.EXPLAIN],
        "format": [check for check in urgent if check.severity is Severity.FORMAT],
    }
    parts = []
    for kind, checks in kinds.items():
        names = dict.fromkeys(check.name for check in checks)
        if names:
            parts.append(f"{kind}: {', '.join(names)}")
    return "; ".join(parts) or "nothing fails, nothing is open"


def _gravity(check: Check) -> tuple[int, int]:
    return VERDICT_ORDER.index(check.verdict), SEVERITY_ORDER.index(check.severity)


def _is_urgent(check: Check) -> bool:
    """Whether a reader has to see an answer without asking for it."""
    if check.verdict is Verdict.CANNOT_TELL:
        return check.severity in (Severity.BLOCKING, Severity.EXPLAIN)
    return check.verdict is not Verdict.PASS and check.severity is not Severity.NOTE


def _by_severity(checks: Iterable[Check]) -> dict[Severity, list[Check]]:
    """Checks below their severity, the gravest first. What passes keeps its order."""
    ordered = sorted(checks, key=_gravity)
    groups = {}
    for severity in SEVERITY_ORDER:
        found = [check for check in ordered if check.severity is severity]
        if found:
            groups[severity] = found
    return groups


def notes(report: Report) -> str:
    """The one neutral line on what the folder cannot show; empty where nothing is missing."""
    missing = [check.name for check in report.checks if check.severity is Severity.NOTE]
    return f"not shown, which lowers nothing: {', '.join(missing)}" if missing else ""


# --- Text ---


def format_report(report: Report, everything: bool = False) -> str:
    """Five lines of summary, then the failures and what is open, then the rest if wanted."""
    lines = [f"{label:<{LABEL_WIDTH}} {text}" for label, text in summary(report).items()]
    urgent = [check for check in report.checks if _is_urgent(check)]
    for severity, checks in _by_severity(urgent).items():
        lines += ["", HEADINGS[severity]]
        for check in checks:
            lines += _rows(check, everything)
    rest = [check for check in report.checks if not _is_urgent(check)]
    if everything:
        lines += ["", "the rest"]
        for check in sorted(rest, key=_gravity):
            lines += _rows(check, everything)
    else:
        lines.append("")
        lines += filter(None, [notes(report), f"{len(rest)} further lines: --all"])
    lines.append(f"{tally(report)}: {report.verdict}")
    return "\n".join(printable(line) for line in lines)


def _rows(check: Check, everything: bool) -> Iterator[str]:
    """An answer and, below it, the lines that prove it."""
    verdict_width, name_width = COLUMN_WIDTHS
    yield f"  {check.verdict:<{verdict_width}} {check.name:<{name_width}} {check.detail}"
    margin = " " * (4 + verdict_width + name_width)
    for evidence in _first_lines(check, everything):
        yield f"{margin}| {evidence}"


def _first_lines(check: Check, everything: bool) -> list[Evidence | str]:
    """The evidence, or its beginning and how much more there is."""
    hidden = len(check.evidence) - FEW_LINES
    if everything or hidden <= 0:
        return list(check.evidence)
    return [*check.evidence[:FEW_LINES], f"and {hidden} more: --all"]


def row(report: Report) -> str:
    """One line for one of many folders: verdict, stated score, folder, what is wrong."""
    score = "-" if report.val_bpb is None else f"{report.val_bpb:.4f}"
    text = f"{report.verdict:<{COLUMN_WIDTHS[0]}} {score:>8}  {report.folder}"
    return printable(f"{text}  {_reasons(report)}")


def count(reports: list[Report]) -> str:
    """`60 folders: 51 PASS, 4 FAIL, 5 CANNOT-TELL`, and how many of them cannot be read."""
    verdicts = [report.verdict for report in reports]
    wanted = (Verdict.PASS, Verdict.FAIL, Verdict.CANNOT_TELL)
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in wanted]
    unreadable = sum(report.problem is not None for report in reports)
    note = f" ({unreadable} of them cannot be read)" if unreadable else ""
    return f"{len(reports)} folders: {', '.join(counts)}{note}"


# --- JSON ---


def as_json(reports: list[Report]) -> str:
    """A list of reports in the order of the folders, in ASCII, which every terminal can print."""
    objects = [{"schema": SCHEMA, **asdict(report)} for report in reports]
    return json.dumps(objects, indent=2)


# --- Markdown ---


def as_markdown(reports: list[Report]) -> str:
    """A comment for a pull request: the folders, those that fail first, details folded away.

    Where it would be too long for a comment, the details of the last folders are left out.
    """
    ordered = sorted(reports, key=lambda report: VERDICT_ORDER.index(report.verdict))
    parts = ["## Check of the record folders", _folder_list(ordered)]
    left = LONGEST_COMMENT - sum(map(len, parts))
    for report in ordered:
        brief = _markdown_brief(report)
        for section in (f"{brief}\n\n{_markdown_details(report)}", brief):
            if len(section) < left:
                parts.append(section)
                left -= len(section)
                break
        else:
            parts.append("The comment would be too long: run `eval check` for the other folders.")
            break
    parts.append(
        "A passing check says that the papers agree with each other. "
        "Whether the score is a probability is the audit's question."
    )
    return "\n\n".join(parts) + "\n"


def _folder_list(reports: list[Report]) -> str:
    """The folders in the given order, the last ones of very many as a number."""
    if not reports:
        return "No record folder is added or changed."
    lines = []
    left = LONGEST_LIST
    for report in reports[:MOST_LISTED]:
        line = f"* **{report.verdict}** {code(report.folder)}"
        left -= len(line)
        if left < 0:
            break
        lines.append(line)
    unlisted = reports[len(lines) :]
    if unlisted:
        verdicts = [report.verdict for report in unlisted]
        counts = [f"{verdicts.count(v)} {v}" for v in VERDICT_ORDER if v in verdicts]
        lines.append(f"* and {len(unlisted)} further folders: {', '.join(counts)}")
    return "\n".join(lines)


def _markdown_brief(report: Report) -> str:
    """The summary and what is urgent."""
    lines = summary(report)
    parts = [f"### {report.verdict}: {code(lines.pop('record'))}"]
    parts.append("\n".join(f"* {label}: {code(text)}" for label, text in lines.items()))
    urgent = [check for check in report.checks if _is_urgent(check)]
    for severity, checks in _by_severity(urgent).items():
        items = "\n".join(_markdown_item(check) for check in checks)
        parts.append(f"**{HEADINGS[severity].capitalize()}**\n\n{items}")
    neutral = notes(report)
    if neutral:
        parts.append(code(neutral))
    return "\n\n".join(parts)


def _markdown_item(check: Check) -> str:
    lines = [f"* **{check.verdict} {check.name}** {code(check.detail)}"]
    lines += [f"  * {code(str(evidence))}" for evidence in _first_lines(check, everything=False)]
    return "\n".join(lines)


def _markdown_details(report: Report) -> str:
    """All other answers, folded away."""
    rest = sorted((check for check in report.checks if not _is_urgent(check)), key=_gravity)
    items = "\n".join(_markdown_item(check) for check in rest)
    title = f"<summary>{len(rest)} further lines</summary>"
    return f"<details>{title}\n\n{items}\n\n</details>"


def code(text: str) -> str:
    """Text of strangers as a code span of Markdown, whatever backticks it holds."""
    shown = printable(text)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest or not shown.strip() else ""
    return f"{fence}{space}{shown or '(empty)'}{space}{fence}"
