"""Writes an audit's report: audit.json, AUDIT.md and the text for the terminal."""

import json
from pathlib import Path

from eval.files import write_atomic
from eval.papers.audits.report import MEANING, AuditReport, SeedScore, TestResult


def to_json(report: AuditReport) -> str:
    return json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def to_terminal(report: AuditReport) -> str:
    lines = [f"record    {report.record}"]
    for score in report.scores:
        claim = (
            ""
            if score.claimed_val_bpb is None
            else f"  claimed {score.claimed_val_bpb:.8f} ({score.val_bpb - score.claimed_val_bpb:+.1e})"
        )
        lines.append(
            f"score     seed {score.seed}: val_bpb {score.val_bpb:.8f}  nats {score.nats:.3f}  tokens {score.scored_tokens:,}"
            f"  bytes {score.scored_bytes:,}  {score.seconds:.1f} s{claim}"
        )
    lines.append(
        f"rules     {report.rules_version}, {report.level}, random seed {report.random_seed}, sandbox {report.sandbox}"
    )
    for test in report.tests:
        lines.append(f"{test.verdict:<8}  {test.name:<14} {test.reason}")
        lines += [
            f"{'':<10}  {'':<14} {f.where}: expected {f.expected}, found {f.found} [{f.rule}]"
            for f in test.findings[1:4]
        ]
    lines.append(f"verdict   {report.verdict}  ({report.seconds:.0f} s)")
    return "\n".join(lines)


def to_markdown(report: AuditReport) -> str:
    """AUDIT.md: verdict, scores, one row per test, then the findings, the numbers and the runs."""
    parts = [
        f"# Audit of {report.record}: {report.verdict}",
        f"Rules `{report.rules_version}`, level `{report.level}`, random seed `{report.random_seed}`, sandbox `{report.sandbox}`, "
        f"{report.started:%Y-%m-%d %H:%M} UTC, {report.seconds:.0f} s. Dataset `{report.dataset}`, corpus version `{report.corpus_version[:16]}`. "
        f"Behaviour tests on the artifact of seed {', '.join(report.audited) or 'none'}. Made by `python -m eval audit`; do not edit.",
    ]
    if report.scores:
        rows = [_score_row(score) for score in report.scores]
        parts += [
            "## Score by the referee",
            _table(
                [
                    "seed",
                    "val_bpb",
                    "claimed",
                    "nats",
                    "tokens",
                    "bytes",
                    "artifact bytes",
                    "seconds",
                ],
                rows,
            ),
        ]
    rows = [[test.name, f"**{test.verdict}**", _cell(test.reason)] for test in report.tests]
    parts += ["## Verdicts", _table(["test", "verdict", "reason"], rows)]
    for test in report.tests:
        if test.verdict != "NOT RUN":
            parts.append(_section(test))
    if report.runs:
        rows = [
            [
                _cell(r.label),
                str(r.streams),
                f"{r.tokens:,}",
                f"{r.probes:,}",
                f"{r.seconds:.1f}",
                f"{r.peak_memory / 2**20:.0f}",
            ]
            for r in report.runs
        ]
        parts += [
            "## Runs",
            _table(["run", "streams", "tokens", "probes", "seconds", "peak MiB"], rows),
        ]
    environment = "; ".join(f"{key} {value}" for key, value in report.environment.items())
    parts.append(f"Machine of the referee: {environment}.")
    return "\n\n".join(parts) + "\n"


def _score_row(s: SeedScore) -> list[str]:
    claimed = "-" if s.claimed_val_bpb is None else f"{s.claimed_val_bpb:.8f}"
    counts = [f"{n:,}" for n in (s.scored_tokens, s.scored_bytes, s.artifact_bytes)]
    return [s.seed, f"{s.val_bpb:.8f}", claimed, f"{s.nats:.3f}", *counts, f"{s.seconds:.1f}"]


def _section(test: TestResult) -> str:
    lines = [f"### {test.name}: {test.verdict}", f"The rule: {MEANING[test.name]}."]
    if test.tolerance:
        lines.append(f"Tolerance: {test.tolerance}. How it was obtained: {test.tolerance_source}.")
    if test.figures:
        lines.append(
            _table(
                ["figure", "value"],
                [[name.replace("_", " "), f"{value:.6g}"] for name, value in test.figures.items()],
            )
        )
    if test.findings:
        rows = [
            [f.verdict, _cell(f.where), _cell(f.expected), _cell(f.found), _cell(f.rule)]
            for f in test.findings
        ]
        lines.append(_table(["verdict", "where", "expected", "found", "rule"], rows))
    if test.more_findings:
        lines.append(f"{test.more_findings} more findings of the same kinds are left out.")
    return "\n\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]])


def write_audit(report: AuditReport, folder: Path) -> None:
    """audit.json and AUDIT.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "audit.json", to_json(report))
    write_atomic(folder / "AUDIT.md", to_markdown(report))
