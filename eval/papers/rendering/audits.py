"""Writes an audit's report: audit.json, AUDIT.md and the text for the terminal."""

import itertools
import json
from pathlib import Path

from eval.files import published, write_atomic
from eval.papers.audits.report import (
    MEANING,
    AuditReport,
    ScorerRun,
    SeedScore,
    TestResult,
)
from eval.papers.rendering.opening import opening, strongest
from eval.papers.rendering.tables import aligned, markdown_table
from eval.papers.submission.schema import AUDIT_FILE, AUDIT_TEXT

LABEL_WIDTHS = (9,)  # characters: of the terminal's lines about the whole audit
TEST_WIDTHS = (9, 14)  # of its lines about one test: verdict and name
LARGE = 10_000  # a measure of that size is shown with one decimal
FURTHER_FINDINGS = 3  # that the terminal shows of each test, beside its reason


def write_audit(report: AuditReport, folder: Path) -> None:
    """audit.json and AUDIT.md in `folder`. Raises OSError when they cannot be written.

    They become part of a record, so they name no folder of this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / AUDIT_FILE, published(to_json(report)))
    write_atomic(folder / AUDIT_TEXT, published(to_markdown(report)))


def to_json(report: AuditReport) -> str:
    return json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


# --- Terminal ---


def to_terminal(report: AuditReport) -> str:
    """The report as plain text: claim, scores, verdict and why, then one line for each test."""
    claim, _, verdict = opening(report)
    rules = (
        f"{report.rules_version}, {report.level}, random seed {report.random_seed}, "
        f"sandbox {report.sandbox}"
    )
    head = [("record", report.record), ("claim", claim)]
    head += [("score", _score_line(score)) for score in report.scores]
    head.append(("verdict", f"{verdict}  ({report.seconds:.0f} s)"))
    head += [("because", sentence) for sentence in strongest(report)]
    head.append(("rules", rules))
    tests = list(itertools.chain.from_iterable(map(_test_rows, report.tests)))
    closing = [("verdict", str(report.verdict))]
    parts = [
        aligned(head, LABEL_WIDTHS),
        aligned(tests, TEST_WIDTHS),
        aligned(closing, LABEL_WIDTHS),
    ]
    return "\n".join(part for part in parts if part)


def _score_line(score: SeedScore) -> str:
    figures = [
        f"seed {score.seed}: val_bpb {score.val_bpb:.8f}",
        f"nats {score.nats:.3f}",
        f"tokens {score.scored_tokens:,}",
        f"bytes {score.scored_bytes:,}",
        f"{score.seconds:.1f} s",
    ]
    if score.claimed_val_bpb is not None:
        difference = score.val_bpb - score.claimed_val_bpb
        figures.append(f"claimed {score.claimed_val_bpb:.8f} ({difference:+.1e})")
    return "  ".join(figures)


def _test_rows(test: TestResult) -> list[tuple[str, str, str]]:
    """Its reason already tells the first finding."""
    rows = [(test.verdict, test.name, test.reason)]
    for finding in test.findings[1 : 1 + FURTHER_FINDINGS]:
        sides = f"expected {finding.expected}, found {finding.found}"
        rows.append(("", "", f"{finding.where}: {sides} [{finding.rule}]"))
    return rows


# --- Markdown ---


def to_markdown(report: AuditReport) -> str:
    """AUDIT.md: claim, score, verdict and why; one row per test; then all findings and numbers."""
    verdicts = [[test.name, f"**{test.verdict}**", _cell(test.reason)] for test in report.tests]
    environment = "; ".join(f"{key} {value}" for key, value in report.environment.items())
    parts = [
        f"# Audit of {report.record}: {report.verdict}",
        " ".join(opening(report)),
        *_evidence(strongest(report)),
        _circumstances(report),
        *_scores(report.scores),
        "## Verdicts",
        markdown_table(["test", "verdict", "reason"], verdicts),
        *(_section(test) for test in report.tests if test.verdict != "NOT RUN"),
        *_runs(report.runs),
        f"Machine of the referee: {environment}.",
    ]
    return "\n\n".join(parts) + "\n"


def _evidence(sentences: list[str]) -> list[str]:
    if not sentences:
        return []
    numbered = [f"{n}. {sentence}" for n, sentence in enumerate(sentences, 1)]
    return ["The strongest evidence:", "\n".join(numbered)]


def _circumstances(report: AuditReport) -> str:
    seeds = ", ".join(report.audited) or "none"
    return (
        f"Rules `{report.rules_version}`, level `{report.level}`, "
        f"random seed `{report.random_seed}`, sandbox `{report.sandbox}`, "
        f"{report.started:%Y-%m-%d %H:%M} UTC, {report.seconds:.0f} s. "
        f"Dataset `{report.dataset}`, corpus version `{report.corpus_version[:16]}`. "
        f"Behaviour tests on the artifact of seed {seeds}. "
        "Made by `python -m eval audit`; do not edit."
    )


def _scores(scores: list[SeedScore]) -> list[str]:
    if not scores:
        return []
    head = ["seed", "val_bpb", "claimed", "nats", "tokens", "bytes", "artifact bytes", "seconds"]
    rows = []
    for score in scores:
        claim = score.claimed_val_bpb
        row = [
            score.seed,
            f"{score.val_bpb:.8f}",
            "-" if claim is None else f"{claim:.8f}",
            f"{score.nats:.3f}",
            f"{score.scored_tokens:,}",
            f"{score.scored_bytes:,}",
            f"{score.artifact_bytes:,}",
            f"{score.seconds:.1f}",
        ]
        rows.append(row)
    return ["## Score by the referee", markdown_table(head, rows)]


def _section(test: TestResult) -> str:
    parts = [f"### {test.name}: {test.verdict}", f"The rule: {MEANING[test.name]}."]
    if test.tolerance:
        parts.append(f"Tolerance: {test.tolerance}. How it was obtained: {test.tolerance_source}.")
    if test.figures:
        figures = [[name.replace("_", " "), figure(v)] for name, v in test.figures.items()]
        parts.append(markdown_table(["figure", "value"], figures))
    if test.findings:
        findings = []
        for finding in test.findings:
            texts = (finding.where, finding.expected, finding.found, finding.rule)
            findings.append([finding.verdict, *map(_cell, texts)])
        head = ["verdict", "where", "expected", "found", "rule"]
        parts.append(markdown_table(head, findings))
    if test.more_findings:
        parts.append(f"{test.more_findings} more findings of the same kinds are left out.")
    return "\n\n".join(parts)


def figure(value: float) -> str:
    """A number of a test: counts to the last digit, measures to six digits or one decimal."""
    if value.is_integer():
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= LARGE else f"{value:.6g}"


def _runs(runs: list[ScorerRun]) -> list[str]:
    if not runs:
        return []
    head = ["run", "streams", "tokens", "probes", "seconds", "peak MiB"]
    rows = []
    for run in runs:
        row = [
            _cell(run.label),
            str(run.streams),
            f"{run.tokens:,}",
            f"{run.probes:,}",
            f"{run.seconds:.1f}",
            f"{run.peak_memory / 2**20:.0f}",
        ]
        rows.append(row)
    return ["## Runs", markdown_table(head, rows)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
