"""Reads `audit.json` and says whether it is an audit of the folder that it lies in."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from eval.errors import UserError, typed_command
from eval.files import sha256_of
from eval.papers.audits.report import (
    MAY_LACK_TEXT,
    SEVERITY,
    TEST_NAMES,
    AuditReport,
    SeedScore,
    conclusion,
)
from eval.papers.submission.files import DirectoryFiles, Files
from eval.papers.submission.schema import (
    AUDIT_FILE,
    CODE_FILE,
    TRACKS,
    SeedResult,
    Submission,
    allowed_difference,
)
from eval.rules import Rules, Verdict, load_rules

NO_SANDBOX = ("", "none", "not needed")
SHA256_DIGITS = 64
LONGEST_FOUND = 100  # characters of a found value that a message shows


@dataclass(frozen=True)
class AuditReading:
    """audit.json as it was read: once for the report and for the lines that state it.

    `report` is None where there is none, or none that can be read: then `problem` says why.
    """

    report: AuditReport | None = None
    problem: str | None = None
    lines: tuple[str, ...] = ()


def read_audit(folder: Path) -> AuditReport | None:
    """The folder's audit.json, None when it was never audited.

    Raises UserError when the file is not one.
    """
    reading = open_audit(folder, DirectoryFiles(folder))
    if reading.problem is not None:
        raise UserError(reading.problem)
    return reading.report


def open_audit(folder: Path, files: Files) -> AuditReading:
    """Read the folder's audit.json without raising for its faults."""
    if AUDIT_FILE not in files.sizes:
        return AuditReading()
    path = folder / AUDIT_FILE
    advice = f"audit the record again: {typed_command('eval', 'audit', folder)}"
    try:
        raw = files.read(AUDIT_FILE)
        report = AuditReport.model_validate_json(raw)
    except UserError as error:
        return AuditReading(problem=f"{error}; {advice}")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        return AuditReading(problem=f"{path}: {where}: {first['msg']}; {advice}")
    lines = raw.decode("utf-8", errors="replace").splitlines()
    return AuditReading(report, None, tuple(lines))


def audit_findings(audit: AuditReport) -> list[str]:
    """One line for each test that did not pass, worst first."""
    failed = [test for test in audit.tests if test.verdict not in ("PASS", "NOT RUN")]
    failed.sort(key=lambda test: SEVERITY.index(test.verdict), reverse=True)
    return [f"{test.verdict} {test.name}: {test.reason}" for test in failed]


def mismatch(report: AuditReport, files: Files, submission: Submission) -> str | None:
    """Why the report is no audit of this folder as it stands; None when it is one.

    The answer is the first fact that differs. A rejection has to be of this code and of these
    artifacts. An acceptance also has to cover every committed artifact, in the sandbox, on the
    stated corpus, by every test.

    Says nothing about who wrote the report: only auditing again does.
    """
    return next(ReportInFolder(report, files, submission).differences(), None)


def too_little(report: AuditReport, submission: Submission) -> str | None:
    """Why a report that contradicts nothing is not enough; None where it is.

    Tests are missing, or the level quick has scored one seed of several."""
    if report.verdict == Verdict.INCOMPLETE:
        names = ", ".join(test.name for test in report.missing)
        return f"INCOMPLETE, level {report.level}: {names} did not run"
    scored = {score.seed for score in report.scores}
    stated = {str(seed) for seed in submission.seeds}
    if report.level == "quick" and scored and scored < stated:
        return f"level quick scored {len(scored)} of {len(stated)} seeds"
    return None


@dataclass(frozen=True)
class ReportInFolder:
    """A report beside the folder that it should be of."""

    report: AuditReport
    files: Files
    submission: Submission

    @cached_property
    def claims(self) -> dict[str, SeedResult | None]:
        """What the record states of each score, by the score's seed."""
        return {score.seed: claim_of(score, self.submission) for score in self.report.scores}

    def sha256(self, name: str) -> str:
        """Of a file of the folder; empty where there is no such file."""
        return sha256_of(self.files.read(name)) if name in self.files.sizes else ""

    def differences(self) -> Iterator[str]:
        """Facts of the report that differ from the folder."""
        yield from self.differing_code()
        yield from self.differing_verdict()
        yield from self.differing_artifacts()
        if self.report.verdict == "INVALID":  # one violation is enough to reject
            return
        yield from self.differing_corpus()
        yield from self.missing_tests()
        yield from self.missing_sandbox()
        yield from self.missing_scores()
        yield from self.missing_behaviour()
        yield from self.differing_rules()

    def differing_code(self) -> Iterator[str]:
        code = self.sha256(CODE_FILE)
        expected = f"that of {CODE_FILE}, {code[:12]}…" if code else f"a {CODE_FILE} in the folder"
        if not code or self.report.code_sha256 != code:
            yield _differs("code_sha256", expected, self.report.code_sha256)

    def differing_verdict(self) -> Iterator[str]:
        expected = conclusion(self.report.tests)
        if self.report.verdict != expected:
            yield _differs("verdict", f"{expected}, the worst of its tests", self.report.verdict)

    def differing_artifacts(self) -> Iterator[str]:
        for score in self.report.scores:
            claim = self.claims[score.seed]
            if claim is None:
                seeds = ", ".join(self.submission.seed_results)
                known_seeds = seeds or "several without a score each"
                yield _differs("seed", f"one of {known_seeds}", score.seed)
                continue
            committed = self.sha256(f"artifact_seed{score.seed}.bin")
            known = [sha for sha in (committed, claim.artifact_sha256) if sha]
            matches = [sha == score.artifact_sha256 for sha in known]
            # An audit that found file and statement to differ rejects for it: either will do.
            same = any(matches) if self.report.verdict == "INVALID" else all(matches)
            if known and not same:
                expected = " and ".join(f"{sha[:12]}…" for sha in known)
                name = f"artifact_sha256 of seed {score.seed}"
                yield _differs(name, expected, score.artifact_sha256)

    def differing_corpus(self) -> Iterator[str]:
        data = self.submission.data
        if data is not None and self.report.corpus_version != data.version:
            yield _differs("corpus_version", f"{data.version[:12]}…", self.report.corpus_version)

    def missing_tests(self) -> Iterator[str]:
        told = {test.name for test in self.report.tests}
        missing = [name for name in TEST_NAMES if name not in told and name not in MAY_LACK_TEXT]
        missing += [test.name for test in self.report.missing]
        if missing:
            yield _differs("tests", "all that every audit runs", f"NOT RUN {', '.join(missing)}")

    def missing_sandbox(self) -> Iterator[str]:
        if self.report.sandbox in NO_SANDBOX:
            yield _differs("sandbox", "a run inside one", self.report.sandbox)

    def missing_scores(self) -> Iterator[str]:
        """Weights outside git reach an audit one file at a time; committed ones all together."""
        track = TRACKS.get(self.submission.track)
        if track is None or not track.commits_artifacts:
            return
        stated = [str(seed) for seed in self.submission.seeds]
        scored = [score.seed for score in self.report.scores]
        if sorted(scored) != sorted(stated):
            expected = f"one for each of the seeds {', '.join(stated)}"
            yield _differs("scores", expected, ", ".join(scored))

    def missing_behaviour(self) -> Iterator[str]:
        """The behaviour tests ran on some of the scored artifacts, a full audit's on all."""
        audited = set(self.report.audited)
        scored = {score.seed for score in self.report.scores}
        full = self.report.level == "full"
        enough = audited == scored if full else audited <= scored
        if not audited or not enough:
            expected = f"{'all' if full else 'some'} of the scored seeds"
            yield _differs("audited", expected, ", ".join(self.report.audited))

    def differing_rules(self) -> Iterator[str]:
        try:
            rules = load_rules(self.report.rules_version)
        except UserError:
            expected = "a rule set of this referee"
            yield _differs("rules_version", expected, self.report.rules_version)
            return
        if self.report.level not in rules.profile:
            yield _differs("level", " or ".join(rules.profile), self.report.level)
        yield from self.differing_scores(rules)

    def differing_scores(self, rules: Rules) -> Iterator[str]:
        for score in self.report.scores:
            stated = self.claims[score.seed]
            claimed = stated.val_bpb if stated else None
            claim = math.inf if claimed is None else claimed
            limit = allowed_difference(claim, rules.score.relative_elsewhere)
            if not abs(score.val_bpb - claim) <= limit:
                expected = f"{claim:.8f} ± {limit:.1e}"
                name = f"val_bpb of seed {score.seed}"
                yield _differs(name, expected, f"{score.val_bpb:.8f}")


def claim_of(score: SeedScore, submission: Submission) -> SeedResult | None:
    """The row of the submission that a score is of; the headline where there are no rows.

    It is found by seed, else by hash. Where either side names no seed, the only row counts.
    """
    rows = submission.seed_results
    if not rows:
        alone = len(submission.seeds) < 2
        return SeedResult(val_bpb=submission.val_bpb) if alone else None
    if score.seed in rows:
        return rows[score.seed]
    for row in rows.values():
        if row.artifact_sha256 == score.artifact_sha256:
            return row
    seed, first = next(iter(rows.items()))
    both_name_seeds = seed.isdecimal() and score.seed.isdecimal()
    return first if len(rows) == 1 and not both_name_seeds else None


def _differs(what: str, expected: str, found: str) -> str:
    text = found or "none"
    longest = 12 if len(text) == SHA256_DIGITS else LONGEST_FOUND
    shown = text if len(text) <= longest else f"{text[:longest]}…"
    return f"{what}: expected {expected}, found {shown}"
