"""The audit's report: one typed schema, three faces (audit.json, AUDIT.md, the terminal)."""

import json
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from eval.errors import UserError
from eval.record import sha256_of
from eval.rules import load_rules
from eval.schema import CODE_FILE, TRACKS, SeedResult, Submission, allowed_difference, write_atomic

Verdict = Literal["PASS", "NOT RUN", "WARN", "POLICY", "INVALID"]
SEVERITY: tuple[Verdict, ...] = ("NOT RUN", "PASS", "WARN", "POLICY", "INVALID")
TEST_NAMES = (
    "future",
    "normalisation",
    "canary",
    "coverage",
    "bytes",
    "isolation",
    "budget",
    "fresh",
    "documents",
    "evidence",
)
MAY_LACK_TEXT = (
    "fresh",
    "documents",
)  # a corpus may have too few documents for these two; the rest always runs
MAX_FINDINGS = 12  # a broken scorer fails everywhere; the first places are enough to see why

MEANING = {
    "future": "a score depends on what stands before it, on nothing after it, and on no other stream",
    "normalisation": "before each token there is one distribution over the vocabulary; it sums to one and the score is read from it",
    "canary": "on text with known probabilities g, the score does not beat g by more than luck allows",
    "coverage": "every target of the full split is scored exactly once, in order, by a finite loss that is not negative",
    "bytes": "bits are divided by the bytes of the text, counted by the referee",
    "isolation": "the run needs nothing but code, artifact, stream and the Python environment, and leaves nothing behind",
    "budget": "code and artifact fit the cap; training and evaluation fit their clocks",
    "fresh": "the advantage over a plain baseline is the same on validation text as on other text",
    "documents": "whether state crosses a document boundary; only a rule set with document isolation minds",
    "evidence": "submission.json, README, logs, code and artifacts say the same, and the referee's own score agrees",
}


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Finding(Model):
    """One violation or remark. `where` names file or position, `expected` and `found` the two sides, `rule` what says so."""

    verdict: Verdict
    where: str
    expected: str
    found: str
    rule: str


class TestResult(Model):
    """One row of the report. `figures` are the numbers the verdict rests on; units are in their names."""

    __test__ = False  # pytest: this is no test class

    name: str
    verdict: Verdict
    reason: str
    figures: dict[str, float] = Field(default_factory=dict)
    tolerance: str = ""
    tolerance_source: str = ""
    findings: list[Finding] = Field(default_factory=list)
    more_findings: int = 0
    seconds: float = 0.0


class SeedScore(Model):
    """The referee's own score of one artifact, beside the claim."""

    seed: str
    artifact_bytes: int
    artifact_sha256: str
    val_bpb: float
    nats: float
    scored_tokens: int
    scored_bytes: int
    seconds: float
    claimed_val_bpb: float | None = None


class Run(Model):
    label: str
    streams: int
    tokens: int
    probes: int
    seconds: float
    cpu_seconds: float | None
    peak_memory: int


class AuditReport(Model):
    """audit.json. `verdict` is the worst of all tests; `random_seed` repeats every choice the referee made by chance."""

    format: Literal[1] = 1
    record: str
    verdict: Verdict
    level: str
    rules_version: str
    random_seed: int
    audited: list[str] = Field(
        default_factory=list, description="seeds whose artifacts the behaviour tests ran on"
    )
    code_sha256: str = Field(
        "",
        description="of the script that was run; with artifact_sha256 of each score it binds the report to its files",
    )
    dataset: str = ""
    corpus_version: str = ""
    sandbox: str = ""
    environment: dict[str, str] = Field(default_factory=dict)
    started: datetime
    seconds: float = 0.0
    scores: list[SeedScore] = Field(default_factory=list)
    tests: list[TestResult]
    runs: list[Run] = Field(default_factory=list)

    def __getitem__(self, name: str) -> TestResult:
        return next(test for test in self.tests if test.name == name)


def worst(verdicts: list[Verdict]) -> Verdict:
    """NOT RUN when nothing ran."""
    return max(verdicts, key=SEVERITY.index, default="NOT RUN")


# --- Is a report about the folder that it lies in? ---


def mismatch(report: AuditReport, folder: Path, submission: Submission) -> str | None:
    """Why the report is no audit of this folder as it stands: the first fact that differs, None when all agree. A rejection has to be of this
    code and of these artifacts; an acceptance also has to cover every committed artifact, in the sandbox, on the stated corpus, by every test.

    Says nothing about who wrote the report: only auditing again does."""
    return next(_mismatches(report, folder, submission), None)


def _mismatches(report: AuditReport, folder: Path, s: Submission) -> Iterator[str]:
    code = _sha256(folder / CODE_FILE)
    if not code or report.code_sha256 != code:
        yield _differs(
            "code_sha256",
            f"that of {CODE_FILE}, {code[:12]}…" if code else f"a {CODE_FILE} in the folder",
            report.code_sha256,
        )
    verdict = worst(
        [
            v
            for test in report.tests
            for v in (test.verdict, *(finding.verdict for finding in test.findings))
        ]
    )
    if report.verdict != verdict:
        yield _differs("verdict", f"{verdict}, the worst of its tests", report.verdict)
    claims = {score.seed: _claim(score, s) for score in report.scores}
    for score in report.scores:
        if (claim := claims[score.seed]) is None:
            yield _differs(
                "seed",
                f"one of {', '.join(s.seed_results) or 'several without a score each'}",
                score.seed,
            )
            continue
        known = [
            sha
            for sha in (_sha256(folder / f"artifact_seed{score.seed}.bin"), claim.artifact_sha256)
            if sha
        ]
        # An audit that found file and statement to differ rejects for it, so there either will do.
        fits = any if report.verdict == "INVALID" else all
        if known and not fits(sha == score.artifact_sha256 for sha in known):
            yield _differs(
                f"artifact_sha256 of seed {score.seed}",
                " and ".join(f"{sha[:12]}…" for sha in known),
                score.artifact_sha256,
            )
    if report.verdict != "INVALID":  # one violation is enough to reject
        yield from _gaps(report, s, claims)


def _gaps(
    report: AuditReport, s: Submission, claims: dict[str, SeedResult | None]
) -> Iterator[str]:
    """What an accepting report leaves open."""
    if s.data is not None and report.corpus_version != s.data.version:
        yield _differs("corpus_version", f"{s.data.version[:12]}…", report.corpus_version)
    ran = {test.name for test in report.tests if test.verdict != "NOT RUN"}
    if missing := [name for name in TEST_NAMES if name not in ran and name not in MAY_LACK_TEXT]:
        yield _differs("tests", "all that every audit runs", f"NOT RUN {', '.join(missing)}")
    if report.sandbox in ("", "none", "not needed"):
        yield _differs("sandbox", "a run inside one", report.sandbox)
    scored = [score.seed for score in report.scores]
    # Weights outside git reach an audit one file at a time.
    if (
        s.track in TRACKS
        and TRACKS[s.track].commits_artifacts
        and sorted(scored) != sorted(map(str, s.seeds))
    ):
        yield _differs(
            "scores", f"one for each of the seeds {', '.join(map(str, s.seeds))}", ", ".join(scored)
        )
    audited = set(report.audited)
    if (
        not audited
        or not audited <= set(scored)
        or (report.level == "full" and audited != set(scored))
    ):
        yield _differs(
            "audited",
            f"{'all' if report.level == 'full' else 'some'} of the scored seeds",
            ", ".join(report.audited),
        )
    try:
        rules = load_rules(report.rules_version)
    except UserError:
        yield _differs("rules_version", "a rule set of this referee", report.rules_version)
        return
    if report.level not in rules.profile:
        yield _differs("level", " or ".join(rules.profile), report.level)
    for score in report.scores:
        claim = claims[score.seed].val_bpb if claims[score.seed] else math.inf
        limit = allowed_difference(claim, rules.score.relative_elsewhere)
        if not abs(score.val_bpb - claim) <= limit:
            yield _differs(
                f"val_bpb of seed {score.seed}",
                f"{claim:.8f} ± {limit:.1e}",
                f"{score.val_bpb:.8f}",
            )


def _differs(what: str, expected: str, found: str) -> str:
    found = found or "none"
    width = 12 if len(found) == 64 else 100  # of a sha256 the beginning tells enough
    return f"{what}: expected {expected}, found {found if len(found) <= width else found[:width] + '…'}"


def _claim(score: SeedScore, s: Submission) -> SeedResult | None:
    """The row that a score is of: by seed, by hash, or the only one, where either side names no seed; the headline where there are no rows."""
    rows = s.seed_results
    if not rows:
        return SeedResult(val_bpb=s.val_bpb) if len(s.seeds) < 2 else None
    same = next(
        (row for row in rows.values() if row.artifact_sha256 == score.artifact_sha256), None
    )
    only, row = next(iter(rows.items()))
    nameless = len(rows) == 1 and not (only.isdecimal() and score.seed.isdecimal())
    return rows.get(score.seed) or same or (row if nameless else None)


def _sha256(path: Path) -> str:
    """Empty where there is no such file."""
    return sha256_of(path) if path.is_file() else ""


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


# --- Faces ---


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


def write(report: AuditReport, folder: Path) -> None:
    """audit.json and AUDIT.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "audit.json", to_json(report))
    write_atomic(folder / "AUDIT.md", to_markdown(report))
