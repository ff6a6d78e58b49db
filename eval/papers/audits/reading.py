"""Reads `audit.json` and says whether it is an audit of the folder that it lies in."""

import math
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from eval.errors import UserError
from eval.files import sha256_of
from eval.papers.audits.report import (
    AUDIT_FILE,
    MAY_LACK_TEXT,
    SEVERITY,
    TEST_NAMES,
    AuditReport,
    SeedScore,
    worst,
)
from eval.papers.submission.schema import (
    CODE_FILE,
    TRACKS,
    SeedResult,
    Submission,
    allowed_difference,
)
from eval.rules import load_rules


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


def read_audit(folder: Path) -> AuditReport | None:
    """The folder's audit.json, None when it was never audited. Raises UserError when the file is not one."""
    path = folder / AUDIT_FILE
    try:
        return AuditReport.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{path}: expected a readable file, found {error.strerror}; audit the record again (python -m eval audit {folder})"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise UserError(
            f"{path}: {where}: {first['msg']}; audit the record again (python -m eval audit {folder})"
        ) from None


def audit_findings(audit: AuditReport) -> list[str]:
    """One line for each test that did not pass, worst first."""
    failed = [test for test in audit.tests if test.verdict not in ("PASS", "NOT RUN")]
    failed.sort(key=lambda test: SEVERITY.index(test.verdict), reverse=True)
    return [f"{test.verdict} {test.name}: {test.reason}" for test in failed]
